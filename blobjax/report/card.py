"""The seven ingredients of the scaling hypothesis as a run had them, and what its chips drew."""

import math
from collections import Counter
from html import escape
from typing import NamedTuple

from blobjax.config import Config
from blobjax.report.facts import Facts
from blobjax.report.html import human
from blobjax.report.prices import Prices
from blobjax.report.redaction import redacted
from blobjax.runs.energy import measured, shown
from blobjax.runs.mixture import HELD_OUT, held_out_loss


class Ingredient(NamedTuple):
    """One box: what it is, the figure that says most, and the rest."""

    name: str
    figure: str
    more: list[str]


def ingredients(facts: Facts, prices: Prices) -> list[Ingredient]:
    """In the order of the README's table."""
    config = facts.config
    length = f"{facts.status['length']:,}" if facts.status["length"] else str(config.duration.length)
    return [
        Ingredient("Raw compute", f"{human(facts.flops)} FLOPs", [*_compute(facts), _own(facts, facts.own_flops)]),
        Ingredient(
            "Quantity of data",
            f"{human(facts.tokens)} tokens",
            [
                "unique tokens not known"
                if math.isnan(unique := facts.unique_tokens)
                else f"{human(unique)} of them unique",
                f"{config.duration.global_batch_size * config.data.seq_len:,} in a step",
                _own(facts, facts.own_tokens),
            ],
        ),
        Ingredient("Breadth of data", _count(facts.effective_domains, "effective domain"), _breadth(facts)),
        Ingredient(
            "Training length",
            f"{facts.tokens_per_param:.3g} tokens per parameter",
            [
                "embeddings out, as a length in tokens/param counts",
                f"{human(facts.params)} parameters, {human(facts.non_embedding_params)} of them without embeddings",
                f"step {facts.status['step']:,} of {length}",
                f"{config.optimizer.schedule} schedule, warm-up {config.duration.warmup}",
            ],
        ),
        Ingredient("Objective", config.objective.kind.replace("_", "-"), _objective(facts)),
        Ingredient(
            "Conditioning", f"{config.conditioning.norm}, {config.conditioning.norm_placement}", _conditioning(config)
        ),
        Ingredient("Stability", *_stability(facts)),
        Ingredient("Energy at the chips", *_energy(facts, prices)),
    ]


def _count(amount: float, of: str) -> str:
    return f"{amount:.3g} {of}{'' if amount == 1 else 's'}"


def _own(facts: Facts, amount: float) -> str:
    return f"{human(amount)} of them in this run, which began from another" if facts.own_tokens < facts.tokens else ""


def _compute(facts: Facts) -> list[str]:
    said, used = facts.start, facts.median("model_flops_utilization")
    if not said:
        return ["not begun"]
    mesh = " ".join(f"{axis}={size}" for axis, size in (said.get("mesh") or {}).items() if size != 1)
    where = f"{said.get('devices', '?')} × {said.get('device_kind', '?')}" + (f" ({mesh})" if mesh else "")
    return [where, f"{used:.1%} of the peak (median)" if used == used else "share of the peak not known"]


def _breadth(facts: Facts) -> list[str]:
    mixture = ", ".join(f"{name} {share:.0%}" for name, share in facts.shares.items())
    seen = {name: facts.epochs[name] for name in facts.shares if name in facts.epochs}
    if not seen:
        return [mixture]
    most = max(seen, key=lambda name: seen[name])
    return [mixture, f"most repeated: {most}, {seen[most]:.2f} epochs"]


def _objective(facts: Facts) -> list[str]:
    held_out = held_out_loss(facts.config, facts.outcome.held_out, "bits_per_byte")
    mean = "not evaluated" if math.isnan(held_out) else f"{held_out:.3f} bits per byte held out, {HELD_OUT}"
    return [
        f"final loss {facts.outcome.final_loss:.3f} nats per token, {facts.config.data.seq_len} in a sequence",
        mean,
    ]


def _conditioning(config: Config) -> list[str]:
    settings, optimizer = config.conditioning, config.optimizer
    on = [
        name
        for name, value in (
            ("QK-norm", settings.qk_norm),
            ("QK-clip", settings.qk_clip),
            ("soft caps", settings.attention_soft_cap or settings.final_soft_cap),
            ("z-loss", settings.z_loss),
            ("embedding norm", settings.embedding_norm),
            ("float32 head", settings.float32_head),
        )
        if value
    ]
    clip = (
        f"clipped: {settings.clip.replace('_', ' ')}"
        if settings.clip_norm or settings.clip != "global_norm"
        else "not clipped"
    )
    return [
        f"{optimizer.name} at {optimizer.learning_rate:g}, {settings.parametrisation.kind} parametrisation",
        f"{settings.precision}, {clip}",
        ", ".join(on),
    ]


def _stability(facts: Facts) -> tuple[str, list[str]]:
    counted = Counter(event["event"] for event in facts.outcome.events)
    undone = {line["step"] for line in facts.undone}
    guard = facts.config.conditioning.guard
    return f"{_count(counted['skip'], 'skip')}, {_count(counted['rollback'], 'rollback')}", [
        f"{_count(len(facts.ledger.attempts), 'attempt')}, goodput {facts.ledger.goodput:.0%}",
        ("guarded" + (", with rollback" if guard.rollback else "")) if guard else "no guard",
        f"{len(undone)} logged steps undone" if undone else "",
        f"{counted['quarantine']} checkpoints put aside" if counted["quarantine"] else "",
        "SILENT CORRUPTION WAS FOUND" if counted["corruption"] else "",
    ]


def _energy(facts: Facts, prices: Prices) -> tuple[str, list[str]]:
    """No source is a meter at the wall: counters cover boards or packages, and estimates the devices' rated power."""
    drawn = {source: joules for source, joules in facts.energy.items() if joules}
    figure = " and ".join(f"{shown(joules)} {'measured' if measured(source) else 'estimated'}"
                          for source, joules in drawn.items()) or "not known"  # fmt: skip
    rate, hours = facts.tokens_per_joule, facts.chip_hours
    more = [
        ", ".join(drawn),
        f"{human(rate)} tokens per joule" if rate else "",
        f"{hours:.3g} chip-hours{facts.chips_counted}" if hours else "",
    ]
    if prices.price is not None:
        more.append(f"{hours * prices.price:,.2f} at {prices.price:g} a chip-hour")
    if prices.grid is not None and rate:
        kwh = prices.wall_kwh(sum(drawn.values()))
        more.append(f"about {kwh * prices.grid / 1000:.3g} kg CO2e at the wall (estimate)")
    return figure, more


def html(facts: Facts, prices: Prices) -> str:
    """The card."""
    boxes = [
        f"<li><h3>{escape(name)}</h3><strong>{escape(figure)}</strong>"
        + "".join(f"<p>{escape(redacted(line))}</p>" for line in more if line)
        + "</li>"
        for name, figure, more in ingredients(facts, prices)
    ]
    return f'<ul class="card">\n{chr(10).join(boxes)}\n</ul>'
