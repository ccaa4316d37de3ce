"""Lines of logs, terminals and mails: what stands before a line's own words is taken away.

Prefixes of any combination, quoting, CR LF and quoted-printable are understood, and a prefix that
is not known is learnt from the line that begins a section. Input is bytes, so that a long log can
be streamed; a line is decoded only if it may matter.
"""

import quopri
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

__all__ = ["Line", "LineReader"]


class Line(NamedTuple):
    """One line, stripped."""

    number: int
    payload: str
    stamped: bool  # it begins a log record
    xen: bool  # Xen's console printed it
    cut: bool  # the text ends in it, without a line end


#: Host and tag of a log. A tag begins with a small letter; what dumps put before a colon does not.
_TAG = r"(?:\S+\ (?!haxm_|guest:|host:)[a-z][^\s:=]*:\ ?)"
#: What stands before the payload of a line, in any combination. `stamp`: it begins a log record.
_PREFIX = re.compile(
    rf"""(?:
    >\ ? | &gt;\ ?
  | (?P<stamp>
        [A-Z][a-z]{{2}}\ [ \d]\d\ [\d:]{{8}}(?:\.\d+)?\ {_TAG}?         # syslog, journalctl
      | \d{{4}}-\d\d-\d\d[T\ ]\d\d:[\d:]+(?:[.,]\d+)?
        (?:Z|\ ?[+-]\d\d:?\d\d|\ UTC|\ GMT)?\ ?{_TAG}?               # the same with ISO dates
      | \d{{9,}}\.\d+\ {_TAG}                                        # journalctl -o short-unix
      | \[\ *\+?\d+\.\d+\](?:\ [\w.-]+\ kernel:)?\ ?               # dmesg, Xen's uptime
      | \[\ *[TC]\d+\]\ ?                                           # dmesg's caller
      | \[(?:[A-Z][a-z]{{2}}\ ){{1,2}}[ \d]\d\ [\d:]{{5,8}}(?:\ \d{{4}})?\]\ ?  # dmesg -T, -H
      | [a-z]{{4,8}}\ *:[a-z]{{3,6}}\ *:\ (?=\[)                      # dmesg -x
      | \[\d{{4}}-\d\d-\d\d\ [\d:.]+\]\ ?                          # Xen's date
      | (?P<xen>\(XEN\)\ ?) | kvm(?:_intel)?(?:\ \[\d+\])?:\ | <\d{{1,2}}>
    )
)*""",
    re.VERBOSE,
)
_QUOTED_PRINTABLE = re.compile(rb"=3D|=C2=A0")
_SECTION = b" State ***"

#: What only lines around a dump hold; a line without it matters only inside one.
_MAY_BEGIN = re.compile(
    rb" State \*\*\*|haxm_|vmentry|VM(?:LAUNCH|RESUME) error|vm entry|_fail> error|entry failed"
    rb"|entry_failure|Domain \d|VCPU|\bmsr "
)


class LineReader:
    """Numbers, joins and strips lines.

    Attributes
    ----------
    inside : bool
        Set by who reads: every line matters, not only those that may begin something.
    """

    def __init__(self, lines: Iterable[bytes]):
        self._lines = lines
        self._quoted_printable = False
        self._learnt: re.Pattern | None = None
        self.inside = False

    def __iter__(self) -> Iterator[Line]:
        soft, first = b"", 0
        for number, raw in enumerate(self._lines, 1):
            if not self.inside and not soft and not _MAY_BEGIN.search(raw):
                continue
            cut = not raw.endswith((b"\n", b"\r"))
            raw = raw.rstrip(b"\r\n")
            if self._quoted_printable or _QUOTED_PRINTABLE.search(raw):
                self._quoted_printable = True
                first = first if soft else number
                raw = soft + raw
                soft = raw[:-1] if raw.endswith(b"=") and len(raw) < 4096 else b""
                if soft:
                    continue
                yield self._line(first, quopri.decodestring(raw), cut)
            else:
                yield self._line(number, raw, cut)
        if soft:
            yield self._line(first, quopri.decodestring(soft), True)

    def _line(self, number: int, raw: bytes, cut: bool) -> Line:
        if _SECTION in raw:
            self._learn(raw)
        text = raw.decode("utf-8", "replace").replace("\N{NO-BREAK SPACE}", " ")
        prefix = _PREFIX.match(text)
        start, stamped = prefix.end(), prefix["stamp"] is not None
        if self._learnt and (match := self._learnt.match(text, start)):
            start, stamped = match.end(), True
        return Line(number, text[start:].strip(), stamped, prefix["xen"] is not None, cut)

    def _learn(self, raw: bytes) -> None:
        """Take what is before a section's head, beside known prefixes, for one; digits may vary."""
        text = raw.decode("utf-8", "replace")
        start, end = _PREFIX.match(text).end(), text.find("***")
        unknown = text[start:end]
        if unknown.strip():
            shape = re.sub(r"\d+", r"\\d+", re.escape(unknown))
            self._learnt = re.compile(re.sub(r"(?:\\ )+", r" *", shape))
        else:
            self._learnt = None
