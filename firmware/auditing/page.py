"""Audits as one self-contained page for a bug report: no script, nothing loaded from elsewhere."""

from collections.abc import Sequence
from html import escape

from vmxswitch.spec.tables import CHECKS, FIELDS

from .audits import Audit, Finding
from .report import explained, heading, in_words
from .suspects import suspects
from .words import decoded, hexadecimal

__all__ = ["page"]

_AREAS = {
    "control": "Controls", "guest-state": "Guest-state area", "host-state": "Host-state area",
    "exit-information": "VM-exit information",
}
_STYLE = """
:root { color-scheme: light dark; --bad: #b3261e; --good: #1b6e3c; --open: #8a5a00;
  --line: #8886; --mark: #b3261e22; }
@media (prefers-color-scheme: dark) {
  :root { --bad: #ff8a80; --good: #7bd88f; --open: #f0b64a; --mark: #ff8a8022; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.15rem; overflow-wrap: anywhere; margin-top: 2rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
.verdict { border-left: .4rem solid; padding: .5rem .75rem; font-weight: 600; font-size: 1.1rem; }
.bad { color: var(--bad); } .good { color: var(--good); } .open { color: var(--open); }
.card { border: 1px solid var(--line); border-radius: .4rem; padding: .75rem; margin: .75rem 0; }
.card p { margin: .3rem 0; } .id { font-weight: 700; color: var(--bad); }
.card.open .id { color: var(--open); } .card.bad, .card.open { color: inherit; }
.note { opacity: .8; font-size: .9rem; }
code, td, pre { font-family: ui-monospace, monospace; font-size: .85rem; }
code { overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; table-layout: fixed; }
td { border-top: 1px solid var(--line); padding: .2rem .4rem .2rem 0; vertical-align: top;
  overflow-wrap: anywhere; }
td:first-child { width: 19rem; } td:nth-child(2) { width: 11.5rem; }
tr.fails td { background: var(--mark); } tr.fails td:first-child { font-weight: 700; }
summary { cursor: pointer; } pre { white-space: pre-wrap; }
@media (max-width: 48rem) {
  tr { display: block; border-top: 1px solid var(--line); padding: .25rem .4rem; }
  td, td:first-child, td:nth-child(2) { display: block; width: auto; border: 0; padding: 0; }
  td:first-child { opacity: .75; } tr.fails td:first-child { opacity: 1; color: var(--bad); } }
"""


def page(audits: Sequence[Audit], sources: Sequence[str]) -> str:
    """The page about several dumps; ``sources`` names the file of each."""
    parts = [_dump(audit, source) for audit, source in zip(audits, sources, strict=True)]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(_title(audits))}</title>\n<style>{_STYLE}</style></head><body>\n"
        f"<h1>{_text(_title(audits))}</h1>\n" + "\n".join(parts) +
        '<p class="note">Written by vmxswitch audit. Section numbers are those of the Intel SDM, '
        "volume 3C, edition of 2016.</p>\n</body></html>\n")


def _title(audits: Sequence[Audit]) -> str:
    if len(audits) == 1:
        return f"VM entry: {audits[0].verdict}"
    failed = sum(bool(audit.failed) for audit in audits)
    return f"{len(audits)} VM entries, {failed} with failing checks"


def _dump(audit: Audit, source: str) -> str:
    kind = "bad" if audit.failed else "good" if audit.verdict == "enters" else "open"
    qualification = ("" if audit.qualification is None
                     else f", qualification {audit.qualification:#x}")
    parts = [
        f"<h2>{_text(heading(audit, source))}</h2>",
        f'<p class="verdict {kind}">{_text(in_words(audit.verdict))}</p>',
        f"<p>Reported: <b>{_text((audit.printed or 'nothing') + qualification)}</b>. "
        f"{_text(audit.agreement[:1].upper() + audit.agreement[1:])}.</p>",
        *map(_finding, audit.failed),
        *(_card("open", f"{row}?", f"Suspect: {CHECKS[row].demand}", [why], "", "")
          for row, why in suspects(audit)),
    ]
    if audit.problems:
        items = "".join(f"<li>line {line}: {_text(words)}</li>" for line, words in audit.problems)
        parts.append(f"<h3>Not readable</h3><ul>{items}</ul>")
    marked = {field: finding.id for finding in reversed(audit.failed) for field in finding.fields}
    for area, title in _AREAS.items():
        fields = {name: value for name, value in audit.dump.fields.items()
                  if FIELDS[name].area == area}
        if fields:
            rows = "".join(_row(name, value, marked.get(name)) for name, value in fields.items())
            parts.append(f"<h3>{title}</h3><table>{rows}</table>")
    parts.append(
        f"<details><summary>{len(audit.undecided)} undecided checks, for they depend on fields "
        "that are not printed or on capabilities that are not known</summary>"
        f"<pre>{_text(chr(10).join(explained(audit)[1:]))}</pre></details>")
    return "<section>" + "\n".join(parts) + "</section>\n"


def _finding(finding: Finding) -> str:
    cure = ""
    if finding.cure:
        field, value = finding.cure
        cure = f"Passes with {field} = {hexadecimal(field, value)}"
    where = f"SDM vol. 3C, {finding.section}; ends in {finding.outcome}"
    return _card("bad", finding.id, finding.demand, [*finding.lines, cure], finding.hint, where)


def _card(kind, row, demand, lines, hint, where) -> str:
    shown = "".join(f"<p><code>{_text(line)}</code></p>" for line in lines if line)
    more = "".join(f'<p class="note">{_text(words)}</p>' for words in (hint, where) if words)
    return (f'<div class="card {kind}"><p><span class="id">{_text(row)}'
            f"</span> {_text(demand)}</p>{shown}{more}</div>")


def _row(name: str, value: int, check: str | None) -> str:
    kind = ' class="fails"' if check else ""
    words = decoded(name, value) + (f" ({check} fails)" if check else "")
    return (f"<tr{kind}><td>{_text(name)}</td><td>{hexadecimal(name, value)}</td>"
            f"<td>{_text(words)}</td></tr>")


def _text(words: str) -> str:
    return escape(words, quote=False)
