// Runs batches of operations on the compiled unit; loaded by verilator.py, which documents the
// records. One call does a whole batch, since crossing from Python costs more than simulating.

#include <cstdint>
#include <cstring>
#include <memory>
#include <unordered_map>
#include <vector>

#include "Vvmx_unit.h"
#ifdef VMX_WAVES
#include "verilated_vcd_c.h"
#endif

namespace {

// Ports are 8, 16, 32 or 64 bits wide, or arrays of 32-bit words.
void put(CData &port, const uint32_t *words) { port = words[0]; }
void put(SData &port, const uint32_t *words) { port = words[0]; }
void put(IData &port, const uint32_t *words) { port = words[0]; }
void put(QData &port, const uint32_t *words) { std::memcpy(&port, words, sizeof port); }
template <std::size_t N> void put(VlWide<N> &port, const uint32_t *words) {
    std::memcpy(port.m_storage, words, 4 * N);
}
void get(const CData &port, uint32_t *words) { words[0] = port; }
void get(const SData &port, uint32_t *words) { words[0] = port; }
void get(const IData &port, uint32_t *words) { words[0] = port; }
void get(const QData &port, uint32_t *words) { std::memcpy(words, &port, sizeof port); }
template <std::size_t N> void get(const VlWide<N> &port, uint32_t *words) {
    std::memcpy(words, port.m_storage, 4 * N);
}

enum Kind : uint32_t {
    REQUEST, EVENT, UPDATE, WRITE_MEMORY, READ_MEMORY, LOOK, FAULT, RESET, TIMING,
    IDLE, SHOW, TIME
};

enum Fault : uint32_t { NONE, ERROR, HANG }; // as in memory.py

struct Machine {
    VerilatedContext context;
    Vvmx_unit top{&context};
    std::unordered_map<uint64_t, uint64_t> memory; // 64-bit words by word address
    std::unordered_map<uint64_t, Fault> faults;    // what words do instead, by word address
    uint64_t cycle = 0;
    bool back_to_back = true;  // offer a request before the one before it is answered
    uint32_t bus_wait_cyc = 0; // memory's answer comes so much later
    uint32_t stall_cyc = 0;    // an answer of the unit is taken so much later
    uint32_t bus_waited = 0;
    bool watching = false;
    std::vector<uint32_t> samples; // rows of SAMPLE_WORDS: cycle, mode, live, of each cycle watched
#ifdef VMX_WAVES
    VerilatedVcdC vcd;
    bool recording = false;
    Machine() {
        context.traceEverOn(true);
        top.trace(&vcd, 99);
    }
#endif

    void reset() {
#ifdef VMX_WAVES
        const bool was_recording = recording;
        recording = false;
#endif
        memory.clear();
        faults.clear();
        top.requests_valid = top.events_valid = top.updates_valid = 0;
        top.responses_ready = top.verdicts_ready = 1;
        top.memory_ack = top.memory_err = 0;
        top.ticks = 0;
        back_to_back = true;
        bus_wait_cyc = stall_cyc = bus_waited = 0;
        top.rst = 1;
        settle();
        tick();
        top.rst = 0;
        settle();
        cycle = 0;
#ifdef VMX_WAVES
        recording = was_recording;
#endif
    }

    // Let the inputs take effect; before the unit's outputs are read, and before every tick.
    // Evaluating the model is what costs time: twice a cycle is the least, here and in `tick`.
    void settle() {
#ifdef VMX_WAVES
        if (!recording) // else `record` lowers it
#endif
        top.clk = 0;
        top.eval();
    }

#ifdef VMX_WAVES
    // Record this cycle. It begins at a rising edge, the first one without; times are half cycles.
    void record() {
        if (cycle) vcd.dump(2 * cycle - 1);
        top.clk = 0;
        top.eval();
        vcd.dump(2 * cycle);
    }
#endif

    // Keep a sample of this cycle if somebody watches.
    void show() {
        if (!watching) return;
        samples.resize(samples.size() + SAMPLE_WORDS);
        uint32_t *const sample = &samples[samples.size() - SAMPLE_WORDS];
        std::memcpy(sample, &cycle, 8);
        sample[2] = top.mode;
        get(top.live, sample + 3);
    }

    // Show a cycle and end it.
    void tick() {
        show();
        edge();
    }

    // The edge that ends a cycle, with memory's answer in the next one, or `bus_wait_cyc` later.
    void edge() {
#ifdef VMX_WAVES
        if (recording) record();
#endif
        bool transfer = top.memory_stb && !top.memory_ack && !top.memory_err;
        const auto found = transfer ? faults.find(top.memory_adr) : faults.end();
        const Fault fault = found == faults.end() ? NONE : found->second;
        if (fault == HANG) {
            transfer = false;
        } else if (transfer && bus_waited < bus_wait_cyc) {
            ++bus_waited;
            transfer = false;
        } else if (transfer) {
            bus_waited = 0;
        }
        const uint64_t address = top.memory_adr, data = top.memory_dat_w;
        const bool write = top.memory_we;
        top.clk = 1;
        top.eval();
        if (transfer && !fault && write) {
            memory[address] = data;
        } else if (transfer && !fault) {
            const auto word = memory.find(address);
            top.memory_dat_r = word == memory.end() ? 0 : word->second;
        }
        top.memory_ack = transfer && !fault;
        top.memory_err = transfer && fault;
        ++cycle;
    }

    // What every result holds.
    void look(uint32_t *result) {
        result[MODE_AT] = top.mode;
        get(top.live, result + LIVE_AT);
        get(top.retired, result + RETIRED_AT);
    }
};

// Hand over requests (or events) one after the other and collect their answers, each in the first
// cycle that shows it. Returns the number of answers: less than `count` if LIMIT_CYC went by.
template <bool REQUESTS>
uint32_t exchange(Machine &machine, const uint32_t *record, uint32_t count, uint32_t *result) {
    auto &top = machine.top;
    CData &valid = REQUESTS ? top.requests_valid : top.events_valid;
    CData &taken = REQUESTS ? top.responses_ready : top.verdicts_ready;
    const CData &ready = REQUESTS ? top.requests_ready : top.events_ready;
    const CData &answered = REQUESTS ? top.responses_valid : top.verdicts_valid;
    uint32_t offered = 0, answers = 0, stalled = 0;
    uint64_t accepted[2], quiet_since = machine.cycle; // at most one waits behind the one at work
    while (answers < count) {
        valid = offered < count && (machine.back_to_back || offered == answers);
        if (valid) {
            const uint32_t *const payload = record + offered * RECORD_WORDS + 1;
            if constexpr (REQUESTS) put(top.requests_payload, payload);
            else put(top.events_payload, payload);
        }
        const bool waits = answers < offered; // else an answer that is still shown is the last one's
        taken = !waits || stalled == machine.stall_cyc;
        machine.settle();
        const bool accepts = valid && ready;
        if (waits && answered && stalled == 0) {
            uint32_t *const row = result + answers * RESULT_WORDS;
            if constexpr (REQUESTS) get(top.responses_payload, row + RESPONSE_AT);
            else get(top.verdicts_payload, row + RESPONSE_AT);
            row[CYCLES_AT] = machine.cycle - accepted[answers % 2];
            get(top.diagnosis, row + DIAGNOSIS_AT);
            machine.look(row);
        }
        const bool ends = waits && answered && taken;
        if (waits && answered) stalled = ends ? 0 : stalled + 1;
        if (ends && answers + 1 == count) { // nothing is left to wait for
            ++answers;
            break;
        }
        machine.tick();
        if (accepts) accepted[offered++ % 2] = machine.cycle - 1;
        if (ends) {
            ++answers;
            quiet_since = machine.cycle;
        } else if (machine.cycle - quiet_since > LIMIT_CYC) {
            break;
        }
    }
    valid = 0;
    taken = 1;
    return answers;
}

} // namespace

extern "C" {

void *vmx_new() {
    auto machine = std::make_unique<Machine>();
    machine->reset();
    return machine.release();
}

void vmx_free(void *handle) { delete static_cast<Machine *>(handle); }

// From now on keep a sample of every clock cycle, or stop.
void vmx_watch(void *handle, uint32_t watching) {
    static_cast<Machine *>(handle)->watching = watching;
}

// Number of samples kept since the last call that took them; with a buffer, take them.
uint32_t vmx_samples(void *handle, uint32_t *buffer) {
    auto &samples = static_cast<Machine *>(handle)->samples;
    const uint32_t count = samples.size() / SAMPLE_WORDS;
    if (buffer) {
        std::memcpy(buffer, samples.data(), 4 * samples.size());
        samples.clear();
    }
    return count;
}

// Number of 64-bit words that memory holds; with a buffer, their byte addresses and contents.
uint64_t vmx_memory(void *handle, uint64_t *buffer) {
    const auto &memory = static_cast<Machine *>(handle)->memory;
    if (buffer) {
        for (const auto &[address, word] : memory) {
            *buffer++ = address << 3;
            *buffer++ = word;
        }
    }
    return memory.size();
}

#ifdef VMX_MUTANTS
// Be this mutant (mutants.py) from the next reset on; 0: none.
void vmx_choose(void *handle, uint32_t mutant) { static_cast<Machine *>(handle)->top.mutant = mutant; }
#endif

#ifdef VMX_WAVES
// Record every cycle from this one on in a VCD file.
void vmx_record(void *handle, const char *path) {
    auto &machine = *static_cast<Machine *>(handle);
    machine.vcd.open(path);
    machine.recording = true;
}

// Complete the file with this cycle.
void vmx_stop(void *handle) {
    auto &machine = *static_cast<Machine *>(handle);
    machine.settle();
    machine.record();
    machine.recording = false;
    machine.vcd.close();
}
#endif

uint64_t vmx_cycle(void *handle) { return static_cast<Machine *>(handle)->cycle; }

// Records and results are rows of RECORD_WORDS and RESULT_WORDS 32-bit words; the layout is
// generated from the unit's ports (verilator.py). Returns the number of records that were done: less
// than `count` if one got no answer within LIMIT_CYC.
uint32_t vmx_run(void *handle, const uint32_t *record, uint32_t count, uint32_t *result) {
    auto &machine = *static_cast<Machine *>(handle);
    auto &top = machine.top;
    for (uint32_t n = 0; n < count; ++n, record += RECORD_WORDS, result += RESULT_WORDS) {
        const uint32_t *const payload = record + 1;
        uint64_t address, value;
        std::memcpy(&address, payload, 8);
        std::memcpy(&value, payload + 2, 8);
        switch (record[0]) {
        case REQUEST: {
            uint32_t last = n;
            while (machine.back_to_back && last + 1 < count
                   && record[(last + 1 - n) * RECORD_WORDS] == REQUEST) ++last;
            const uint32_t done = exchange<true>(machine, record, last + 1 - n, result);
            if (done < last + 1 - n) return n + done;
            record += (last - n) * RECORD_WORDS;
            result += (last - n) * RESULT_WORDS;
            n = last;
            continue;
        }
        case EVENT:
            if (!exchange<false>(machine, record, 1, result)) return n;
            continue;
        case UPDATE:
            put(top.updates_payload, payload);
            top.updates_valid = 1;
            machine.settle();
            while (!top.updates_ready) {
                machine.tick();
                machine.settle();
            }
            machine.tick();
            top.updates_valid = 0;
            break;
        case WRITE_MEMORY: {
            const uint64_t mask = payload[4] == 8 ? ~0ull : 0xFFFFFFFFull << (address & 4) * 8;
            uint64_t &word = machine.memory[address >> 3];
            word = (word & ~mask) | (value << (address & 4) * 8 & mask);
            break;
        }
        case READ_MEMORY: {
            const auto word = machine.memory.find(address >> 3);
            const uint64_t found = word == machine.memory.end() ? 0 : word->second;
            std::memcpy(result + RESPONSE_AT, &found, 8);
            break;
        }
        case LOOK:
            break;
        case TIME:
            top.ticks = payload[0];
            machine.settle();
            machine.tick();
            top.ticks = 0;
            machine.settle();
            break;
        case IDLE: // after a SHOW
            machine.settle();
            machine.edge();
            break;
        case SHOW:
            machine.show();
            break;
        case FAULT:
            machine.faults[address >> 3] = static_cast<Fault>(value);
            break;
        case RESET:
            machine.reset();
            break;
        case TIMING:
            machine.back_to_back = payload[0];
            machine.bus_wait_cyc = payload[1];
            machine.stall_cyc = payload[2];
            break;
        }
        machine.look(result);
    }
    return count;
}
}
