#!/bin/bash
# Installs the engines that `make test-engines` runs on, and the browser that tests/report looks at pages with: system
# packages with apt (as root, or through sudo), Python packages into the environment whose Python is given.
#
#     tests/engines/install.sh .venv/bin/python
set -euo pipefail
python=${1:?the Python to install into}

sudo=""
[ "$(id -u)" -eq 0 ] || sudo=sudo
$sudo apt-get update -q
$sudo apt-get install -y -q slurm-wlm munge openmpi-bin shellcheck chromium

"$python" -m pip install --quiet -e '.[test,engines]'
