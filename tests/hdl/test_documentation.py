# amaranth: UnusedElaboratable=no
"""Every port of every component is documented, and every constructor checks its argument."""

import inspect
import re

import pytest

from vmxswitch.hdl.commit import Commit
from vmxswitch.hdl.entry_checker import EntryChecker
from vmxswitch.hdl.exit_steps import ExitSteps
from vmxswitch.hdl.exit_unit import ExitUnit
from vmxswitch.hdl.instruction_unit import InstructionUnit
from vmxswitch.hdl.live_state import LiveState
from vmxswitch.hdl.memory_unit import MemoryUnit
from vmxswitch.hdl.mode_controller import ModeController
from vmxswitch.hdl.sequencer import Sequencer
from vmxswitch.hdl.vmcs_bank import VmcsBank
from vmxswitch.hdl.vmcs_pointers import VmcsPointers
from vmxswitch.hdl.vmx_unit import VmxUnit
from vmxswitch.spec.capabilities import PRESETS

CONFIGURED = [
    Commit, EntryChecker, ExitSteps, ExitUnit, InstructionUnit, LiveState, MemoryUnit, Sequencer,
    VmcsBank, VmcsPointers, VmxUnit,
]


@pytest.mark.parametrize("component", [ModeController, *CONFIGURED], ids=lambda c: c.__name__)
def test_every_member_is_documented(component):
    instance = component(PRESETS["compact"]) if component in CONFIGURED else component()
    members = inspect.cleandoc(component.__doc__).split("Members\n-------\n")[1]
    headings = re.findall(r"^(\S.*)$", members, re.MULTILINE)
    documented = {word for heading in headings for word in re.findall(r"\w+", heading)}
    assert set(instance.signature.members) <= documented


@pytest.mark.parametrize("component", CONFIGURED, ids=lambda c: c.__name__)
@pytest.mark.parametrize("wrong", [None, "full", 64])
def test_constructor_refuses_anything_but_capabilities(component, wrong):
    with pytest.raises(TypeError, match=f"wants Capabilities, not {wrong!r}"):
        component(wrong)
