"""A table of results for LaTeX, with the rules of the package booktabs."""

from __future__ import annotations

from jetrep.report.tables import METRIC_NAMES, Errors, ResultsTable

__all__ = ["to_latex"]

_SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    "−": "$-$",
    ">": "$>$",
    "<": "$<$",
    "ε": r"$\varepsilon$",
    "σ": r"$\sigma$",
}


def to_latex(table: ResultsTable, errors: Errors = "total") -> str:
    """A ``table`` environment: the same cells as `ResultsTable.to_markdown`, domains above their metrics."""
    n = len(table.metrics)
    groups = " & ".join(["", *(rf"\multicolumn{{{n}}}{{c}}{{{_escaped(domain)}}}" for domain in table.domains)])
    rules = " ".join(
        rf"\cmidrule(lr){{{2 + i * n}-{1 + (i + 1) * n}}}" for i, domain in enumerate(table.domains) if domain
    )
    heads = ["", *(_escaped(METRIC_NAMES.get(metric, metric)) for _ in table.domains for metric in table.metrics)]
    rows = [
        " & ".join(
            _escaped(text)
            for text in [method, *(table.cell(method, d, m, errors) for d in table.domains for m in table.metrics)]
        )
        for method in table.methods
    ]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escaped(table.title)}. {_escaped('. '.join(table.caption(errors).splitlines()))}.}}",
        rf"\begin{{tabular}}{{l{'r' * (n * len(table.domains))}}}",
        r"\toprule",
        groups + r" \\",
        rules,
        " & ".join(heads) + r" \\",
        r"\midrule",
        *(row + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join([*lines, ""])


def _escaped(text: str) -> str:
    # "ε_S" is one symbol with an index.
    text = text.replace("ε_S", "\0").replace("ε_B", "\1")
    text = "".join(_SPECIAL.get(character, character) for character in text)
    return text.replace("\0", r"$\varepsilon_S$").replace("\1", r"$\varepsilon_B$")
