"""What a store shows of itself in a notebook, and the parts that other cards are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from sonde.errors import StoreError

if TYPE_CHECKING:
    from .schema import ArraySpec

from .contents import Contents
from .schema import ALL

STYLE = """<style>
.sonde-card, .sonde-card table, .sonde-card tr, .sonde-card pre {color: inherit; background: none}
.sonde-card {font: 0.9em/1.4 sans-serif}
.sonde-card table {border-collapse: collapse; margin: 0.3em 0}
.sonde-card th, .sonde-card td {padding: 0.15em 1.2em 0.15em 0; text-align: left; vertical-align: top}
.sonde-card th {font-weight: normal; opacity: 0.7}
.sonde-card pre {user-select: all; white-space: pre-wrap; margin: 0.4em 0}
</style>"""
"""Of an element with the class ``sonde-card``."""


def card(store: Contents) -> str:
    """A self-contained HTML fragment: where the store lies, what it holds, where that came from, and how to open it.

    No script and nothing from a network; colours are those of the page around it. All that the store says of itself is
    escaped; labels that cannot be read are shown as such.
    """
    facts = {
        "state": "complete" if store.complete else f"{len(store.commits)} of {len(store.ranges)} ranges",
        "samples": f"{store.n_samples:,}" + (f" ({len(store.skipped):,} skipped)" if store.skipped else ""),
        "labels": ", ".join(f"{name} ({_kind(store, name)})" for name in store.label_names) or "none",
    }
    arrays = [
        (
            spec.name,
            f"[{len(spec.layers)}, {'tokens' if spec.ragged else f'{store.n_samples:,}'}, {spec.hidden:,}]",
            _layers(spec.layers),
            store.schema.dtype,
            store.schema.codec,
            _bytes(_nbytes(store, spec)),
        )
        for spec in store.arrays
    ]
    versions = ", ".join(f"{name} {version}" for name, version in store.schema.versions.items())
    provenance = facts_table(_provenance(store) | {"versions": versions})
    return (
        f'{STYLE}<div class="sonde-card"><div><strong>Store</strong> <code>{escape(str(store.location))}</code></div>'
        + facts_table(facts)
        + table(("activations", "shape", "layers", "dtype", "codec", "bytes"), arrays)
        + f"<details open><summary>Provenance</summary>{provenance}</details>"
        + _opening(store)
        + "</div>"
    )


def opening_line(store: Contents) -> str:
    """One line of Python that opens an array of the store: in xarray, or, of tokens, one layer."""
    opened = f"import sonde; sonde.open({str(store.location)!r})"
    for spec in store.arrays:
        if not spec.ragged:
            return f"{opened}.to_xarray()[{spec.name!r}]"
    first = store.arrays[0]
    which = "" if first.tokens == ALL else f", {first.tokens!r}"
    return f"{opened}.tokens({first.site!r}, {first.layers[0]}{which})"


def _opening(store: Contents) -> str:
    if not store.complete:
        return "<div>Finish it with <code>sonde extract --resume</code>.</div>"
    return f"<pre><code>{escape(opening_line(store))}</code></pre>"


def _provenance(store: Contents) -> dict[str, Any]:
    known = {("model" if key == "name" else key): value for key, value in store.schema.model.items()}
    data = store.schema.data.get("fingerprint")
    return {key: value for key, value in known.items() if value is not None} | ({"data": data} if data else {})


def _kind(store: Contents, name: str) -> str:
    try:
        return store.labels(name).kind
    except (StoreError, OSError):
        return "cannot be read"


def _nbytes(store: Contents, spec: ArraySpec) -> int:
    return sum(
        chunk.nbytes
        for commit in store.commits.values()
        if spec.name in commit.arrays
        for chunk in commit.arrays[spec.name].all_chunks()
    )


def _layers(layers: tuple[int, ...]) -> str:
    if len(layers) > 2 and layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]} to {layers[-1]}"
    return ", ".join(map(str, layers))


def _bytes(n: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024:
            return f"{n:.4g} {unit}"
        n /= 1024
    return f"{n:,.4g} TiB"


def facts_table(facts: Mapping[str, Any]) -> str:
    """Names beside values, escaped."""
    rows = (
        f'<tr><th scope="row">{escape(str(name))}</th><td>{escape(str(value))}</td></tr>'
        for name, value in facts.items()
    )
    return f"<table>{''.join(rows)}</table>"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Rows under their heads, escaped."""
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>"
