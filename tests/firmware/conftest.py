"""Processors for guests."""

from functools import cache
from pathlib import Path

import pytest

from vmxswitch import backends
from vmxswitch.firmware.environment import Environment
from vmxswitch.firmware.vmm import Vmm
from vmxswitch.spec.capabilities import PRESETS, Capabilities

#: Backends that the tests of guests run on; they are written for all.
BACKENDS = ["model"]
PROFILES = Path(__file__).parents[1] / "cases" / "profiles"


@cache
def processor(name):
    """Capabilities by the name of a preset or recorded profile; each is made once."""
    return PRESETS[name] if name in PRESETS else Capabilities.from_profile(
        PROFILES / f"{name}.json")


@cache
def shared_port(backend, name):
    """A processor that is slow to make, for all tests: every VMM resets it."""
    return backends.port(backend, processor(name))


@pytest.fixture(params=BACKENDS)
def new_vmm(request):
    """Makes a VMM on a processor, by default one with everything that guests need."""
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
