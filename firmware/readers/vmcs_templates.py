"""Lines of KVM's and Xen's VMCS dumps as templates, and how words of a line are matched with them.

A name in braces stands for the digits of that field, "0x" is there or not as written, "[0x]" may
be there, a blank is any white space, " = " may have any blanks around it or none. Words that stand
on one line are separate templates if they make sense alone, so that a line may be wrapped, cut or
printed in parts. Empty braces stand for a number that is no field, ``*NAME`` for a value that is
not the field's, see :attr:`~vmxswitch.firmware.readers.vmcs_text.VmcsDump.effective`. SVI, RVI: one
field.

Sources: Linux arch/x86/kvm/vmx/vmx.c, Xen xen/arch/x86/hvm/vmx/vmcs.c.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from vmxswitch.spec import tables

from ..environment import SEGMENTS

__all__ = ["SECTIONS", "Section", "matches", "short"]


def _area(area: str) -> tuple[str, ...]:
    """Words that the guest and the host section share."""
    return (
        f"RSP = 0x{{{area}_RSP}}",
        f"RIP = 0x{{{area}_RIP}}",
        f"Sysenter RSP={{{area}_IA32_SYSENTER_ESP}} "
        f"CS:RIP={{{area}_IA32_SYSENTER_CS}}:{{{area}_IA32_SYSENTER_EIP}}",
        f"EFER = 0x{{{area}_IA32_EFER}}",
        f"EFER(VMCS) = 0x{{{area}_IA32_EFER}}",
        *(f"EFER = 0x{{*{area}_IA32_EFER}} ({mark})" for mark in ("effective", "autoload")),
        f"EFER(MSR LL) = 0x{{*{area}_IA32_EFER}}",
        f"PAT = 0x{{{area}_IA32_PAT}}",
        f"{area.title()} PAT = 0x{{{area}_IA32_PAT}}",
        f"PerfGlobCtl = 0x{{{area}_IA32_PERF_GLOBAL_CTRL}}",
        f"S_CET = 0x{{{area}_IA32_S_CET}}",
        f"SSP = 0x{{{area}_SSP}}",
        f"SSP TABLE = 0x{{{area}_INTERRUPT_SSP_TABLE_ADDR}}",
        f"FRED {area.lower()}: config=0x{{{area}_IA32_FRED_CONFIG}}, "
        f"stack levels=0x{{{area}_IA32_FRED_STKLVLS}}",
        "RSP0=0x{}",  # an MSR
        *(f"RSP{i}=0x{{{area}_IA32_FRED_RSP{i}}}" for i in (1, 2, 3)),
    )


def _segment(name: str) -> tuple[str, str]:
    """KVM's and Xen's line of a segment register."""
    s = f"GUEST_{name}"
    return (
        f"{name}: sel=0x{{{s}_SELECTOR}}, attr=0x{{{s}_AR}}, "
        f"limit=0x{{{s}_LIMIT}}, base=0x{{{s}_BASE}}",
        f"{name}: {{{s}_SELECTOR}} {{{s}_AR}} {{{s}_LIMIT}} {{{s}_BASE}}",
    )


def _table(name: str) -> tuple[str, str]:
    s = f"GUEST_{name}"
    return (
        f"{name}: limit=0x{{{s}_LIMIT}}, base=0x{{{s}_BASE}}",
        f"{name}: {{{s}_LIMIT}} {{{s}_BASE}}",
    )


_TEMPLATES = {
    "Guest": (
        *_area("GUEST"),
        *(
            f"{cr}: actual=0x{{GUEST_{cr}}}, shadow=0x{{{cr}_READ_SHADOW}}, "
            f"gh_mask={{{cr}_GUEST_HOST_MASK}}"
            for cr in ("CR0", "CR4")
        ),
        "CR3 = 0x{GUEST_CR3}",
        "CR3: actual=0x{GUEST_CR3}, target_count={CR3_TARGET_COUNT}",
        *(f"target{i}={{CR3_TARGET_VALUE{i}}}" for i in range(4)),
        *(f"{word}{i} = 0x{{GUEST_PDPTE{i}}}" for word in ("PDPTR", "PDPTE") for i in range(4)),
        "RFLAGS=0x{GUEST_RFLAGS}",
        "DR7 = 0x{GUEST_DR7}",
        *(line for name in SEGMENTS for line in _segment(name)),
        *(line for name in ("GDTR", "IDTR") for line in _table(name)),
        "DebugCtl = [0x]{GUEST_IA32_DEBUGCTL}",
        "DebugExceptions = [0x]{GUEST_PENDING_DBG_EXCEPTIONS}",
        "BndCfgS = 0x{GUEST_IA32_BNDCFGS}",
        "Interruptibility = {GUEST_INTERRUPTIBILITY_STATE}",
        "ActivityState = {GUEST_ACTIVITY_STATE}",
        "InterruptStatus = {GUEST_INTERRUPT_STATUS}",
        "PreemptionTimer = 0x{VMX_PREEMPTION_TIMER_VALUE}",
        "SM Base = 0x{GUEST_SMBASE}",
        "SPEC_CTRL mask = 0x{SPEC_CTRL_MASK} shadow = 0x{SPEC_CTRL_SHADOW}",
        "TSC Offset = [0x]{TSC_OFFSET}",
    ),
    "Host": (
        *_area("HOST"),
        *(f"{name}={{HOST_{name}_SELECTOR}}" for name in SEGMENTS if name != "LDTR"),
        *(f"{name}Base={{HOST_{name}_BASE}}" for name in ("FS", "GS", "TR")),
        *(f"{name}Base={{HOST_{name}R_BASE}}" for name in ("GDT", "IDT")),
        *(f"{cr}={{HOST_{cr}}}" for cr in ("CR0", "CR3", "CR4")),
    ),
    "Control": (
        "PinBased=[0x]{PIN_BASED_CTLS}",
        "CPUBased=[0x]{PRIMARY_PROC_BASED_CTLS}",
        "SecondaryExec=[0x]{SECONDARY_PROC_BASED_CTLS}",
        "TertiaryExec=[0x]{TERTIARY_PROC_BASED_CTLS}",
        "EntryControls=[0x]{VM_ENTRY_CTLS}",
        "ExitControls=[0x]{VM_EXIT_CTLS}",
        "SecondaryExitControls=[0x]{SECONDARY_VM_EXIT_CTLS}",
        "ExceptionBitmap={EXCEPTION_BITMAP}",
        "PFECmask={PAGE_FAULT_ERROR_CODE_MASK}",
        "PFECmatch={PAGE_FAULT_ERROR_CODE_MATCH}",
        "VMEntry: intr_info={VM_ENTRY_INTR_INFO} errcode={VM_ENTRY_EXCEPTION_ERROR_CODE} "
        "ilen={VM_ENTRY_INSTRUCTION_LENGTH}",
        "VMExit: intr_info={VM_EXIT_INTR_INFO} errcode={VM_EXIT_INTR_ERROR_CODE} "
        "ilen={VM_EXIT_INSTRUCTION_LENGTH}",
        "reason={VM_EXIT_REASON} qualification={EXIT_QUALIFICATION}",
        "IDTVectoring: info={IDT_VECTORING_INFO} errcode={IDT_VECTORING_ERROR_CODE}",
        "TSC Offset = 0x{TSC_OFFSET}",
        "TSC Multiplier = 0x{TSC_MULTIPLIER}",
        "SVI|RVI = {SVI}|{RVI}",
        "TPR Threshold = 0x{TPR_THRESHOLD}",
        "APIC-access addr = 0x{APIC_ACCESS_ADDR}",
        "virt-APIC addr = 0x{VIRTUAL_APIC_ADDR}",
        "PostedIntrVec = 0x{POSTED_INTR_NOTIFICATION_VECTOR}",
        "EPT pointer = 0x{EPT_POINTER}",
        "EPTP index = 0x{EPTP_INDEX}",
        "PLE Gap={PLE_GAP} Window={PLE_WINDOW}",
        "Virtual processor ID = 0x{VPID}",
        "VMfunc controls = {VM_FUNCTION_CONTROLS}",
        "VE info address = 0x{VE_INFO_ADDR}",
        *(f"{lead}target{i}={{CR3_TARGET_VALUE{i}}}" for i in range(4) for lead in ("CR3 ", "")),
        # early patch sets print the host's words of CET at the very end
        *(template for template in _area("HOST") if template.startswith(("S_CET", "SSP"))),
    ),
}


class _Template(NamedTuple):
    head: re.Pattern  # up to the first value
    whole: re.Pattern
    names: tuple[str, ...]
    shown: str  # for messages


class Section(NamedTuple):
    """Templates of a section; ``heads`` is any template's head, at the start of a word."""

    templates: tuple[_Template, ...]
    heads: re.Pattern


def _literal(text: str) -> str:
    return (
        re.escape(text)
        .replace(r"\[0x\]", "(?:0x)?")
        .replace(r"stack\ levels", "stack[ _]levels")
        .replace(r"\ =\ ", r"\s*=\s*")
        .replace(r"\ ", r"\s+")
    )


def _compiled(template: str) -> _Template:
    first, *rest = re.split(r"\{(.*?)\}", template)
    names, literals = rest[::2], rest[1::2]
    digits = "([0-9a-fA-F]{1,16})"
    whole = _literal(first) + "".join(digits + _literal(literal) for literal in literals)
    return _Template(
        re.compile(_literal(first)),
        re.compile(whole + r"(?![^\s,])"),
        tuple(names),
        re.sub(r"\{.*?\}", "...", template.replace("[0x]", "")),
    )


def _section(templates: Iterable[str]) -> Section:
    compiled = tuple(_compiled(template) for template in templates)
    heads = "|".join({template.head.pattern: None for template in compiled})
    return Section(compiled, re.compile(rf"(?<!\S)(?:{heads})"))


SECTIONS = {name: _section(templates) for name, templates in _TEMPLATES.items()}

#: Fewest digits with which a value is printed, where these are not the digits of its width.
_DIGITS = {
    "GUEST_RFLAGS": 8, "GUEST_SMBASE": 8, "TPR_THRESHOLD": 2, "SVI": 2, "RVI": 2,
    "POSTED_INTR_NOTIFICATION_VECTOR": 2, "EXIT_QUALIFICATION": 8, "CR3_TARGET_COUNT": 1,
    "GUEST_IA32_SYSENTER_CS": 4, "HOST_IA32_SYSENTER_CS": 4,
    "GUEST_INTERRUPTIBILITY_STATE": 4, "GUEST_ACTIVITY_STATE": 4,
    **{f"GUEST_{name}_AR": 5 for name in SEGMENTS},
}


def short(name: str, digits: str) -> bool:
    """Whether a value has fewer digits than any version prints."""
    name = name.removeprefix("*")
    least = _DIGITS[name] if name in _DIGITS else tables.FIELDS[name].bits // 4
    return len(digits) < least


def matches(
    section: Section, text: str
) -> tuple[list[tuple[str, str, int]], tuple[str, str] | None]:
    """Values in a text: field, digits, and where the words end; and the first damaged words.

    Damaged words begin like a template and do not go on like it; what is returned with them is
    that template.
    """
    found, damaged, position = [], None, 0
    while head := section.heads.search(text, position):
        start, position = head.span()
        candidates = [
            template for template in section.templates if template.head.match(text, start)
        ]
        matched = [
            (match, template)
            for template in candidates
            if (match := template.whole.match(text, start))
        ]
        if matched:
            match, template = max(matched, key=lambda pair: pair[0].end())
            found += [
                (name, match[index], match.end(index))
                for index, name in enumerate(template.names, 1)
                if name
            ]
            position = match.end()
        elif damaged is None:
            damaged = (text[start:], candidates[0].shown)
    return found, damaged
