// Runs a compiled board, byte by byte of its serial line; loaded by board.py.

#include <cstdint>
#include <memory>
#include <vector>

#include "Vvmx_unit.h" // the top is called so whatever it is

namespace {

constexpr uint32_t FRAME_BITS = 10; // start bit, eight data bits, stop bit

struct Board {
    VerilatedContext context;
    Vvmx_unit top{&context};
    uint32_t level_cyc = 0;              // cycles that rx has had its level
    uint32_t sending = 0, bits_left = 0; // bits to the board, the next one lowest
    int32_t sample_in = -1;              // cycles until tx is looked at; -1: the line is idle
    uint32_t received = 0, bits_seen = 0;

    Board() {
        top.rx = 1;
        top.rst = 1;
        edge();
        top.rst = 0;
    }

    void edge() {
        top.clk = 0;
        top.eval();
        top.clk = 1;
        top.eval();
    }

    // One cycle; a byte that the board has sent, or -1.
    int cycle() {
        if (bits_left && level_cyc == 0) top.rx = sending & 1;
        edge();
        if (bits_left && ++level_cyc == DIVISOR) {
            level_cyc = 0;
            sending >>= 1;
            --bits_left;
        }
        if (sample_in < 0 && !top.tx) { // a start bit: look at the middle of each bit after it
            sample_in = DIVISOR + DIVISOR / 2 - 1;
            received = bits_seen = 0;
        } else if (sample_in == 0) {
            if (bits_seen == FRAME_BITS - 2) {
                sample_in = -1;
                return received;
            }
            received |= top.tx << bits_seen++;
            sample_in = DIVISOR - 1;
        } else if (sample_in > 0) {
            --sample_in;
        }
        return -1;
    }
};

} // namespace

extern "C" {

void *board_new() { return std::make_unique<Board>().release(); }

void board_free(void *handle) { delete static_cast<Board *>(handle); }

uint32_t board_leds(void *handle) { return static_cast<Board *>(handle)->top.leds; }

// Send bytes to the board, then let `cycles` go by; what it sent meanwhile. Returns how many bytes.
uint32_t board_run(void *handle, const uint8_t *bytes, uint32_t count, uint32_t cycles,
                   uint8_t *answer) {
    auto &board = *static_cast<Board *>(handle);
    uint32_t answered = 0;
    const auto step = [&] {
        const int byte = board.cycle();
        if (byte >= 0) answer[answered++] = byte;
    };
    for (uint32_t n = 0; n < count; ++n) {
        board.sending = 1u << (FRAME_BITS - 1) | bytes[n] << 1;
        board.bits_left = FRAME_BITS;
        while (board.bits_left) step();
    }
    for (uint32_t n = 0; n < cycles; ++n) step();
    return answered;
}
}
