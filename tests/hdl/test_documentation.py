# amaranth: UnusedElaboratable=no
"""Every port of every component is documented, and every constructor checks its argument."""

import inspect
import re
from functools import partial

import pytest

from vmxswitch.hdl.commit import Commit
from vmxswitch.hdl.entry_checker import EntryChecker
from vmxswitch.hdl.exit_steps import ExitSteps
from vmxswitch.hdl.exit_unit import ExitUnit
from vmxswitch.hdl.instruction_unit import InstructionUnit
from vmxswitch.hdl.live_state import LiveState
from vmxswitch.hdl.memory_unit import MemoryUnit
from vmxswitch.hdl.mode_controller import ModeController
from vmxswitch.hdl.register_file import RegisterFile
from vmxswitch.hdl.sequencer import Sequencer
from vmxswitch.hdl.serial_unit import SerialUnit
from vmxswitch.hdl.sparse_memory import SparseMemory
from vmxswitch.hdl.uart import UartReceiver, UartTransmitter
from vmxswitch.hdl.uart_bridge import UartBridge
from vmxswitch.hdl.vmcs_bank import VmcsBank
from vmxswitch.hdl.vmcs_pointers import VmcsPointers
from vmxswitch.hdl.vmx_unit import VmxUnit
from vmxswitch.hdl.wishbone_unit import WishboneUnit
from vmxswitch.spec.capabilities import PRESETS

CONFIGURED = [
    Commit, EntryChecker, ExitSteps, ExitUnit, InstructionUnit, LiveState, MemoryUnit, Sequencer,
    VmcsBank, VmcsPointers, VmxUnit, WishboneUnit,
]
#: How the others are built.
OTHERS = [
    partial(ModeController), partial(UartReceiver, 4), partial(UartTransmitter, 4),
    partial(UartBridge, 100), partial(SparseMemory, 40, frames=4, frame_words=8),
    partial(RegisterFile, [], address_bits=4), partial(SerialUnit, PRESETS["full"], clock_hz=10**9),
]


@pytest.mark.parametrize("make", [
    *OTHERS, *(partial(component, PRESETS["compact"]) for component in CONFIGURED),
], ids=lambda make: make.func.__name__)
def test_every_member_is_documented(make):
    instance = make()
    members = inspect.cleandoc(type(instance).__doc__).split("Members\n-------\n")[1]
    headings = re.findall(r"^(\S.*)$", members, re.MULTILINE)
    documented = {word for heading in headings for word in re.findall(r"\w+", heading)}
    assert set(instance.signature.members) <= documented


@pytest.mark.parametrize("component", CONFIGURED, ids=lambda c: c.__name__)
@pytest.mark.parametrize("wrong", [None, "full", 64])
def test_constructor_refuses_anything_but_capabilities(component, wrong):
    with pytest.raises(TypeError, match=f"wants Capabilities, not {wrong!r}"):
        component(wrong)
