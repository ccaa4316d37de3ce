"""A processor that is brought into any world with a few words."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest

from vmxswitch.sim.cases import read_profile
from vmxswitch.sim.model import Model
from vmxswitch.sim.processor import Processor
from vmxswitch.spec.operations import Instruction, Outcome
from vmxswitch.spec.tables import FIELD_BY_ENCODING, FIELDS

PROFILES = Path(__file__).parents[1] / "cases" / "profiles"


class Machine:
    """A processor of a recorded profile, in the profile's environment.

    Its regions are at ``VMXON`` and above; the baselines use other memory. It is the reference
    model, if no other ``port`` is given; ``msrs`` are bits that its capability MSRs have beside the
    recorded ones, by index.
    """
    VMXON, VMCS = 0x30_0000, 0x30_1000

    def __init__(self, profile, msrs=None, port=None):
        self.profile = read_profile(PROFILES / f"{profile}.json")
        recorded = self.profile.capabilities
        if port is None:
            port = Model(recorded if msrs is None else replace(recorded, msrs={
                index: value | msrs.get(index, 0) for index, value in recorded.msrs.items()}))
        self.port, self.capabilities = port, port.capabilities
        self.start()

    def start(self):
        """Reset, and the profile's environment."""
        self.port.reset()
        Processor(self.port).set_up(self.profile.environment)

    def region(self, address, bits=0):
        """Write a region's first word: the revision identifier and further bits."""
        self.port.write_memory(address, 4, self.capabilities.revision | bits)

    def do(self, name, **operands):
        """Carry out an instruction."""
        return self.port.execute(Instruction(name, **operands))

    def succeed(self, name, **operands):
        """Carry out an instruction that must succeed."""
        answer = self.do(name, **operands)
        assert answer.outcome == Outcome.SUCCEED, answer
        return answer.value

    def enter_root(self):
        """VMXON."""
        self.region(self.VMXON)
        self.succeed("VMXON", pointer=self.VMXON)

    def load(self, address, baseline=None, **fields):
        """Make a cleared VMCS current and write a baseline and further fields."""
        self.region(address)
        self.succeed("VMCLEAR", pointer=address)
        self.succeed("VMPTRLD", pointer=address)
        pairs = self.profile.baselines[baseline] if baseline else []
        for field, value in [*pairs, *fields.items()]:
            self.write(field, value)

    def write(self, field, value):
        """VMWRITE; two of a 64-bit field where software has 32-bit registers."""
        encoding = FIELDS[field].encoding
        self.succeed("VMWRITE", encoding=encoding, value=value)
        if self.profile.environment["MODE"] == 32 and encoding + 1 in FIELD_BY_ENCODING:
            self.succeed("VMWRITE", encoding=encoding + 1, value=value >> 32)

    def read(self, field):
        """VMREAD."""
        return self.succeed("VMREAD", encoding=FIELDS[field].encoding)

    def fields(self):
        """Every field of the current VMCS, by VMREAD."""
        return {field: self.read(field) for field in self.capabilities.fields}

    def state(self):
        """A copy of all that an operation may change: registers, mode, memory, current VMCS."""
        kept = vars(self.port) | {
            "_memory": self.port.memory_words(), "_residents": self.port._residents.state()}
        return copy.deepcopy({
            name: value for name, value in kept.items()
            if name not in ("capabilities", "cycle", "watcher", "_rules")})


@pytest.fixture
def machine():
    """A function that makes a :class:`Machine` in a world: "off", "root", "loaded" or "guest".

    "loaded" is VMX root operation with a launchable VMCS, "guest" what comes after its launch.
    ``fields`` change the VMCS before.
    """
    def make(
        world="off", profile="skylake_x_64", baseline="long64_ept_A", *, msrs=None, **fields,
    ):
        machine = Machine(profile, msrs)
        if world != "off":
            machine.enter_root()
        if world in ("loaded", "guest"):
            machine.load(Machine.VMCS, baseline, **fields)
        if world == "guest":
            assert machine.do("VMLAUNCH").outcome == Outcome.ENTERED
        return machine
    return make


@pytest.fixture(scope="session")
def machine_on():
    """A function that makes a :class:`Machine` of a recorded profile on a port."""
    return lambda profile, port: Machine(profile, port=port)
