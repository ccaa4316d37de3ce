# amaranth: UnusedElaboratable=no
"""The serial line: what one end sends the other receives, and what is damaged is dropped."""

import pytest
from amaranth import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from vmxswitch.hdl.uart import UartReceiver, UartTransmitter

DIVISOR = 5


class Loop(wiring.Component):
    """A transmitter wired to a receiver."""
    sent: In(stream.Signature(8))
    received: Out(stream.Signature(8))

    def elaborate(self, platform):
        m = Module()
        m.submodules.transmitter = transmitter = UartTransmitter(DIVISOR)
        m.submodules.receiver = receiver = UartReceiver(DIVISOR)
        wiring.connect(m, wiring.flipped(self.sent), transmitter.bytes)
        wiring.connect(m, receiver.bytes, wiring.flipped(self.received))
        m.d.comb += receiver.rx.eq(transmitter.tx)
        return m


async def send(ctx, dut, bits, divisor=DIVISOR):
    """Put bits on the line, one after the other, and let it idle."""
    for bit in [*bits, 1, 1]:
        ctx.set(dut.rx, bit)
        await ctx.tick().repeat(divisor)


def frame(byte, stop=1):
    return [0, *(byte >> place & 1 for place in range(8)), stop]


def test_bytes_go_through_back_to_back(simulate):
    dut = Loop()
    data = [0x00, 0xFF, 0x55, 0xAA, 0x31]

    async def sender(ctx):
        for byte in data:
            await stream_put(ctx, dut.sent, byte)

    async def receiver(ctx):
        for byte in data:
            ctx.set(dut.received.ready, 1)
            payload, = await ctx.tick().sample(dut.received.payload).until(dut.received.valid)
            assert payload == byte

    simulate(dut, sender, receiver)


async def stream_put(ctx, port, payload):
    ctx.set(port.payload, payload)
    ctx.set(port.valid, 1)
    await ctx.tick().until(port.ready)
    ctx.set(port.valid, 0)


@pytest.mark.parametrize("bits, what", [
    (frame(0x42, stop=0), "no stop bit"),
    ([],                  "nothing"),
])
def test_a_byte_without_a_stop_bit_is_dropped(simulate, bits, what):
    dut = UartReceiver(DIVISOR)

    async def testbench(ctx):
        await send(ctx, dut, bits)
        assert not ctx.get(dut.bytes.valid), what
        await send(ctx, dut, frame(0x77))
        assert ctx.get(dut.bytes.valid) and ctx.get(dut.bytes.payload) == 0x77

    simulate(dut, testbench)


def test_a_glitch_is_no_start_bit(simulate):
    dut = UartReceiver(DIVISOR)

    async def testbench(ctx):
        ctx.set(dut.rx, 0)
        await ctx.tick()
        await send(ctx, dut, [1] * 12)
        assert not ctx.get(dut.bytes.valid)

    simulate(dut, testbench)


def test_a_byte_that_was_not_taken_stays(simulate):
    dut = UartReceiver(DIVISOR)

    async def testbench(ctx):
        await send(ctx, dut, frame(0x11))
        await send(ctx, dut, frame(0x22))
        assert ctx.get(dut.bytes.payload) == 0x11
        ctx.set(dut.bytes.ready, 1)
        await ctx.tick()
        assert not ctx.get(dut.bytes.valid)

    simulate(dut, testbench)


@pytest.mark.parametrize("component", [UartReceiver, UartTransmitter])
@pytest.mark.parametrize("divisor", [0, 3, 4.5, None])
def test_a_bit_that_is_too_short_is_refused(component, divisor):
    with pytest.raises(ValueError, match=f"4 cycles or more, not {divisor!r}; choose a lower baud"):
        component(divisor)
