"""The verb `explain`: every entry of the tables has something to say, near misses are named."""

import pytest

from vmxswitch import cli
from vmxswitch.firmware.auditing import glossary
from vmxswitch.spec.errors import UsageError
from vmxswitch.spec.tables import CHECKS, CONTROLS, ERRORS, EXIT_REASONS, FIELDS, INSTRUCTIONS


@pytest.mark.parametrize("names", [
    list(CHECKS), list(FIELDS), list(CONTROLS), [f"reason {number}" for number in EXIT_REASONS],
    [f"error {number}" for number in ERRORS], [f"{field.encoding:#06x}" for field in
                                               FIELDS.values() if field.encoding > 0xFF],
    [row.id for rows in INSTRUCTIONS.values() for row in rows],
    [reason.name for reason in EXIT_REASONS.values()], [error.symbol for error in ERRORS.values()],
], ids=["checks", "fields", "controls", "reasons", "errors", "encodings", "rows", "names",
        "symbols"])
def test_every_entry_is_explained(names):
    for name in names:
        found = glossary.entries(name.lower())
        assert found and all(entry.lines and entry.neighbours for entry in found), name


@pytest.mark.parametrize(("name", "title", "words"), [
    ("g64", "G64: check of stage guest", "VM-entry failure, exit reason 33, qualification 0"),
    ("M06", "M06: check of stage msr-load", "qualification the number of the list entry"),
    ("GUEST_DS_AR", "GUEST_DS_AR: Guest DS access rights, VMCS field 0x481a", "3:0 type; 4 S"),
    ("0x80000021", "exit reason 33 (0x21): VM-entry failure: invalid guest state", "0x80000021"),
    ("EPT violation", "exit reason 48 (0x30): EPT violation", "PROC2_ENABLE_EPT"),
    ("error  7", "VM-instruction error 7 (ENTRY_INVALID_CONTROL_FIELDS)", "VMLAUNCH.7"),
    ("PROC2_UNRESTRICTED_GUEST", "PROC2_UNRESTRICTED_GUEST: bit 7 of SECONDARY_PROC_BASED_CTLS",
     "C42 C81 C82 G01"),
    ("VM_ENTRY_CTLS", "VM_ENTRY_CTLS: VM-entry controls, VMCS field 0x4012", "9 ENTRY_IA32E"),
    ("VMXON.6", "VMXON.6: case 6 of VMXON; the first true one decides", "#GP(0)"),
])
def test_entries_say_what_there_is_to_say(capsys, name, title, words):
    assert cli.main(["explain", *name.split()]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.startswith(f"{title}\n") and "beside it" in out
    assert words in " ".join(out.split())


def test_a_number_may_be_two_things():
    assert [entry.title[:12] for entry in glossary.entries("7")] == ["exit reason ", "VM-instructi"]


@pytest.mark.parametrize(("name", "meant"), [
    ("G640", "did you mean G64"), ("GUEST_DSAR", "did you mean GUEST_DS_AR"),
    ("PROC2_UNRESTRICTED", "did you mean PROC2_UNRESTRICTED_GUEST"), ("ept violaton",
                                                                      "did you mean EPT violation"),
    ("error 99", "no check, field, exit reason, error or control 'error 99'"), ("", "control ''"),
])
def test_near_misses(name, meant):
    with pytest.raises(UsageError) as error:
        glossary.entries(name)
    assert meant in str(error.value)
