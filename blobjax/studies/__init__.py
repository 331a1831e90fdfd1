"""STUDIES: many ordinary runs as one question. A grid of configs, cells that are never run twice, plots and a page."""
