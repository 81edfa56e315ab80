"""The tables that `fullfield bench` prints: models against each other, and one model taken apart."""

from __future__ import annotations

from collections.abc import Iterator

from rich.markup import escape
from rich.table import Table

from fullfield.measure.breakdown import Breakdown
from fullfield.measure.profile import Profile, ProfileRow
from fullfield.measure.speed import Bench, setting_words

__all__ = ["breakdown_tables", "cost_note", "cost_tables", "roofline_note", "speed_note", "speed_tables"]

NOTHING = "–"


def speed_tables(measured: Bench) -> Iterator[Table]:
    """Yield one table a mode and batch size, a row for each model and setting."""
    has_bounds = any(row.bound_ms is not None for row in measured.rows)
    for mode, batch in dict.fromkeys((row.setting.mode, row.setting.batch) for row in measured.rows):
        rows = [row for row in measured.rows if (row.setting.mode, row.setting.batch) == (mode, batch)]
        sizes = " and ".join(dict.fromkeys("×".join(map(str, row.setting.image_size)) for row in rows))
        table = _table(f"{_mode_words(mode)}, batch {batch}, {sizes}", ("model", "setting"))
        for name in ("images/s", "p50 ms", "p90 ms", "p99 ms", "memory MB", "GMAC/s"):
            table.add_column(name, justify="right")
        if has_bounds:
            table.add_column("of roofline", justify="right")
        if measured.peer is not None:
            table.add_column(f"speed / {escape(measured.peer)}", justify="right")
        fastest = {row.model: min(r.samples.median_s for r in rows if r.model == row.model) for row in rows}
        for row in rows:
            cells = [escape(row.model), setting_words(row.setting), f"{row.images_per_s:.1f}"]
            cells += [f"{row.samples.percentile_ms(p):.1f}" for p in (50, 90, 99)]
            cells.append(NOTHING if row.peak_memory_mb is None else f"{row.peak_memory_mb:.0f}")
            cells.append(f"{row.cost.macs * row.images_per_s / 1e9:.1f}")
            if has_bounds:
                cells.append(_percent(row.roofline_fraction))
            if measured.peer is not None:
                cells.append(str(row.ratio) if row.ratio else NOTHING)
            table.add_row(*cells, style="" if row.samples.median_s == fastest[row.model] else "dim")
        yield table


def speed_note(measured: Bench) -> str:
    """Return what the models cost, what the columns of `speed_tables` mean, and where they were measured."""
    env = measured.environment
    costs = {row.model: row.cost for row in reversed(measured.rows) if not row.setting.fused}
    counts = [f"{name}: {c.params / 1e6:.2f} M parameters, {c.macs / 1e9:.3f} GMACs" for name, c in costs.items()]
    return (
        f"{'; '.join(reversed(counts))}. {env['device']}, {env['threads']} threads, torch {env['torch']}. Bright: a"
        " model's fastest setting. Memory is what a call adds to the weights; a ratio is the median over interleaved"
        " rounds (10th to 90th percentile)."
    )


def cost_tables(found: Profile) -> Iterator[Table]:
    """Yield the counts per kind of operator, with the total, and per module."""
    by_part = {part: [row for row in found.rows if row.part == part] for part in ("total", "operator", "module")}
    size = "×".join(map(str, found.setting.image_size))
    columns = ("params M", "GMACs", "GFLOPs", "share", "softmax M", "MB moved", "FLOP/byte", "bound ms", "reached")
    for part, rows in (("operator", [*by_part["operator"], *by_part["total"]]), ("module", by_part["module"])):
        table = _table(f"{escape(found.name)}, one image of {size}, per {part}", (part,))
        for name in columns:
            table.add_column(name, justify="right")
        for row in rows:
            label = "total" if row.part == "total" else row.group.name or "(itself)"
            table.add_row(escape(label), *_cost_cells(row, found.report.cost.flops))
        yield table


def _cost_cells(row: ProfileRow, whole: int) -> list[str]:
    group = row.group
    return [
        NOTHING if group.params is None else f"{group.params / 1e6:.2f}",
        f"{group.macs / 1e9:.3f}",
        f"{group.flops / 1e9:.3f}",
        _percent(group.flops / whole if whole else None),
        f"{group.softmax_elements / 1e6:.2f}" if group.softmax_elements else NOTHING,
        f"{(group.weight_bytes + group.map_bytes) / 2**20:.1f}",
        f"{group.intensity:.1f}",
        NOTHING if row.bound_ms is None else f"{row.bound_ms:.2f}",
        _percent(row.roofline_fraction),
    ]


def cost_note(found: Profile) -> str:
    """Return the memory of a training step and what hook counters miss, in words."""
    memory = found.memory
    parts = {
        "weights": memory.weight_bytes,
        "gradients": memory.gradient_bytes,
        "AdamW": memory.optimizer_bytes,
        "activations": memory.activation_bytes,
        "working": memory.working_bytes,
    }
    words = ", ".join(f"{name} {count / 2**20:.0f}" for name, count in parts.items())
    return (
        f"A training step of {memory.batch} images keeps {memory.total_bytes / 2**20:.0f} MB: {words}.\n"
        f"A counter on module hooks misses {found.report.missed_by_hooks:.1%} of the MACs; products without a learned"
        f" operand are {found.report.dynamic_share:.1%}."
    )


def breakdown_tables(found: Profile) -> Iterator[Table]:
    """Yield the times per kind of operator and per module, longest first."""
    for times in (found.kinds, found.modules):
        if times is not None:
            yield _breakdown_table(times)


def _breakdown_table(times: Breakdown) -> Table:
    s = times.setting
    what = f"{_mode_words(s.mode)}, batch {s.batch}, {s.layout} {s.precision}"
    is_module = times.by == "module"
    table = _table(f"{escape(times.model)}, {what}, per {'module' if is_module else 'operator'}", (times.by,))
    if is_module:
        table.add_column("class", no_wrap=True)
    for name in ("calls", "ms", "share", "bound ms", "reached"):
        table.add_column(name, justify="right")
    for row in times.rows:
        cells = [escape(row.name or "(itself)"), *([escape(row.kind)] if is_module else [])]
        cells += [f"{row.calls:.0f}", f"{row.ms:.2f}", _percent(row.ms / times.total_ms if times.total_ms else None)]
        cells += [NOTHING if row.bound_ms is None else f"{row.bound_ms:.2f}", _percent(row.roofline_fraction)]
        table.add_row(*cells)
    return table


def roofline_note(found: Profile) -> str:
    """Return where the bounds come from."""
    on, env = found.machine, found.kinds.environment
    peaks = ", ".join(f"{peak / 1e9:.0f} GFLOP/s in {name}" for name, peak in on.flops_per_s.items())
    return (
        f"A call of {found.setting.batch} takes {found.latency.percentile_ms(50):.1f} ms (median). Reached is bound /"
        f" time, above 100 % where maps stay in the cache. Measured here: {on.bytes_per_s / 1e9:.1f} GB/s and {peaks};"
        f" {on.device}, {on.threads} threads, torch {env['torch']}."
    )


def _table(title: str, left: tuple[str, ...]) -> Table:
    # a title wraps at the width of its table
    table = Table(box=None, header_style="bold", title=title, title_justify="left", min_width=len(title))
    for name in left:
        table.add_column(name, no_wrap=True)
    return table


def _mode_words(mode: str) -> str:
    return "training step" if mode == "train" else mode


def _percent(share: float | None) -> str:
    return NOTHING if share is None else f"{share:.1%}"
