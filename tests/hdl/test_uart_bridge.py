# amaranth: UnusedElaboratable=no
"""Frames of ``uartbone``: what goes over the bus, what comes back, and what a broken one does."""

import zlib

import pytest
from amaranth.sim import Simulator

from vmxswitch.hdl.uart_bridge import UartBridge, UartCommand

TIMEOUT_CYC = 50
ADDRESS = 0x1234_5678


def frame(command, count, *words):
    data = [command.value, count, *ADDRESS.to_bytes(4, "big")]
    return bytes(data) + b"".join(word.to_bytes(4, "big") for word in words)


class Host:
    """Sends bytes, takes those that come back, and is the bus: it counts up from what is read."""

    def __init__(self, dut):
        self.dut, self.accesses, self.answer = dut, [], b""

    async def send(self, ctx, data):
        port = self.dut.received
        for byte in data:
            ctx.set(port.payload, byte)
            ctx.set(port.valid, 1)
            await ctx.tick().until(port.ready)
            ctx.set(port.valid, 0)
            await ctx.tick().repeat(3)

    async def serve(self, ctx):
        """A bus whose word at an address is its lower half, twice."""
        bus = self.dut.bus
        async for _, _reset, stb, we, address, data in ctx.tick().sample(
                bus.stb, bus.we, bus.adr, bus.dat_w):
            ctx.set(bus.ack, int(stb and not ctx.get(bus.ack)))
            if stb and ctx.get(bus.ack):
                ctx.set(bus.dat_r, (address & 0xFFFF) * 0x1_0001)
                self.accesses.append((address, data) if we else (address, None))

    async def receive(self, ctx):
        port = self.dut.sent
        ctx.set(port.ready, 1)
        async for _, _reset, valid, payload in ctx.tick().sample(port.valid, port.payload):
            if valid:
                self.answer += bytes([payload])


def converse(conversation):
    """Runs a conversation of a host with a bridge; what happened on the bus and came back."""
    host = Host(UartBridge(TIMEOUT_CYC))
    async def talk(ctx):
        await conversation(ctx, host)
        await ctx.tick().repeat(100)
    simulator = Simulator(host.dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(talk)
    simulator.add_testbench(host.serve, background=True)
    simulator.add_testbench(host.receive, background=True)
    simulator.run()
    return host.accesses, host.answer


@pytest.mark.parametrize("command, step", [(UartCommand.WRITE, 1), (UartCommand.WRITE_FIXED, 0)])
def test_words_are_written(command, step):
    async def conversation(ctx, host):
        await host.send(ctx, frame(command, 2, 0x0102_0304, 0xFFFE_FDFC))
    assert converse(conversation) == (
        [(ADDRESS, 0x0102_0304), (ADDRESS + step, 0xFFFE_FDFC)], b"")


@pytest.mark.parametrize("command, step", [(UartCommand.READ, 1), (UartCommand.READ_FIXED, 0)])
def test_words_are_read(command, step):
    async def conversation(ctx, host):
        await host.send(ctx, frame(command, 2))
    accesses, answer = converse(conversation)
    assert accesses == [(ADDRESS, None), (ADDRESS + step, None)]
    assert answer.hex() == f"56785678{0x5678 + step:04x}{0x5678 + step:04x}"


def test_bytes_that_are_no_command_are_passed_over():
    async def conversation(ctx, host):
        await host.send(ctx, b"\x00\xff\x05\x80" + frame(UartCommand.WRITE, 1, 7))
    assert converse(conversation) == ([(ADDRESS, 7)], b"")


@pytest.mark.parametrize("length", [1, 2, 4, 6, 8, 9])
def test_a_frame_that_stops_is_given_up(length):
    async def conversation(ctx, host):
        await host.send(ctx, frame(UartCommand.WRITE, 1, 7)[:length])
        await ctx.tick().repeat(TIMEOUT_CYC + 2)
        await host.send(ctx, frame(UartCommand.WRITE, 1, 8))
    assert converse(conversation) == ([(ADDRESS, 8)], b"")


def test_a_pause_that_is_short_enough_is_none():
    async def conversation(ctx, host):
        for byte in frame(UartCommand.WRITE, 1, 7):
            await host.send(ctx, bytes([byte]))
            await ctx.tick().repeat(TIMEOUT_CYC - 10)
    assert converse(conversation) == ([(ADDRESS, 7)], b"")


def test_check_is_the_crc_of_all_bytes():
    seen = []
    async def conversation(ctx, host):
        await host.send(ctx, frame(UartCommand.READ, 1))
        await ctx.tick().repeat(20)
        seen.append(ctx.get(host.dut.check))
        ctx.set(host.dut.restart, 1)
        await ctx.tick()
        ctx.set(host.dut.restart, 0)
        seen.append(ctx.get(host.dut.check))
    _, answer = converse(conversation)
    assert seen == [zlib.crc32(frame(UartCommand.READ, 1) + answer), 0]


@pytest.mark.parametrize("timeout", [0, -1, 1.5])
def test_a_pause_that_cannot_be_is_refused(timeout):
    with pytest.raises(ValueError, match=f"number of cycles from 1, not {timeout!r}"):
        UartBridge(timeout)
