// All kernels in one unit, so that the linker keeps their entries.
#include "../cuda/activation.cu"
#include "../cuda/attention.cu"
#include "../cuda/attention_paged.cu"
#include "../cuda/attention_tensor.cu"
#include "../cuda/logits.cu"
#include "../cuda/norm.cu"
#include "../cuda/optimizer.cu"
#include "../cuda/rope.cu"
#include "../cuda/rows.cu"
#include "../cuda/sampling.cu"
#include "faults.cu"
#include "fragments.cu"

extern "C" const emulator::Entry *emulated_kernel(const char *name) {
    const emulator::Entry *entry = emulator::entries;
    while (entry && std::strcmp(entry->name, name) != 0) entry = entry->next;
    return entry;
}
