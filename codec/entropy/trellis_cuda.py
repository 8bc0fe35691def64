"""The search of trellis-coded quantisation on a GPU: what trellis_search.py defines, one thread to a cell.

The definition starts some six thousand kernels for a latent, a channel at a time; this is one, written in CUDA and
compiled by torch at first use. Needs torch alone.
"""

import functools

import torch
from torch import Tensor

from codec.entropy.trellis import BEFORE, BRANCH, COSTS, LARGEST, STATES, WEIGHT, costs
from codec.format import FIRST_BIN, ODD_STATES

BLOCK = 64  # threads

SOURCE = (
    f"""
#define STATES {STATES}
#define COSTS {COSTS}
#define FIRST_BIN {FIRST_BIN}
#define ODD_STATES {ODD_STATES}
#define WEIGHT {float(WEIGHT).hex()}f
#define LARGEST {LARGEST}f
__device__ const int BEFORE[STATES][2] = {{{", ".join(f"{{{a}, {b}}}" for a, b in BEFORE.tolist())}}};
__device__ const int BRANCH[STATES][2] = {{{", ".join(f"{{{a}, {b}}}" for a, b in BRANCH.tolist())}}};
"""
    """
// The candidates of a channel, [quantiser][parity], and their prices. Nothing is contracted to a fused
// multiplication: prices are those of the definition to the bit.
__device__ __forceinline__ float price(float size, int k, float shift, const float* bits) {
    float gap = __fadd_rn(size, -fmaxf(__fadd_rn((float)k, -shift), 0.0f));
    return __fadd_rn(__fmul_rn(WEIGHT, __fmul_rn(gap, gap)), bits[k < COSTS ? k : COSTS - 1]);
}

__device__ __forceinline__ float magnitude(float residual) {
    float size = fabsf(residual);
    return size < LARGEST ? size : LARGEST;  // what is no number too
}

__device__ __forceinline__ void candidates(float size, int bin, const float* bits, int* chosen, float* prices) {
#pragma unroll
    for (int odd = 0; odd < 2; odd++) {
        const float shift = 0.5f * odd;
        const float* entry = bits + COSTS * (bin + ODD_STATES * odd);
        const int low = (int)__fadd_rn(size, shift);  // and low + 1: one of either parity
        int even = (low + 1) & -2;
        float of_even = price(size, even, shift, entry), of_zero = price(size, 0, shift, entry);
        if (of_zero < of_even) {
            even = 0;
            of_even = of_zero;
        }
        chosen[2 * odd] = even;
        chosen[2 * odd + 1] = low | 1;
        prices[2 * odd] = of_even;
        prices[2 * odd + 1] = price(size, low | 1, shift, entry);
    }
}

extern "C" __global__ void search(
    const float* residual, const unsigned char* bins, unsigned char* states, const float* uniform, const float* bits,
    unsigned char* ways, short* symbols, unsigned char* tables, int cells, int channels) {
    const int cell = blockIdx.x * blockDim.x + threadIdx.x;
    if (cell >= cells) return;
    const long long row = (long long)cell * channels;
    float cost[STATES], prices[4];
    int chosen[4];
#pragma unroll
    for (int t = 0; t < STATES; t++) cost[t] = states[cell] == t ? 0.0f : 1e30f;
    for (int c = 0; c < channels; c++) {
        const int bin = bins[row + c];
        if (bin < FIRST_BIN) continue;
        candidates(magnitude(residual[row + c]), bin, bits, chosen, prices);
        float least[STATES];
        unsigned way = 0;
#pragma unroll
        for (int t = 0; t < STATES; t++) {
            const float first = __fadd_rn(cost[BEFORE[t][0]], prices[BRANCH[t][0]]);
            const float second = __fadd_rn(cost[BEFORE[t][1]], prices[BRANCH[t][1]]);
            way |= (unsigned)(second < first) << t;
            least[t] = second < first ? second : first;
        }
#pragma unroll
        for (int t = 0; t < STATES; t++) cost[t] = least[t];
        ways[(long long)c * cells + cell] = way;
    }
    int state = 0;
    for (int t = 1; t < STATES; t++)
        if (cost[t] < cost[state]) state = t;
    states[cell] = state;
    for (int c = channels - 1; c >= 0; c--) {
        const int bin = bins[row + c];
        if (bin < FIRST_BIN) {
            symbols[row + c] = bin > 0 ? (short)uniform[row + c] : 0;
            tables[row + c] = bin;
            continue;
        }
        const int way = (ways[(long long)c * cells + cell] >> state) & 1;
        candidates(magnitude(residual[row + c]), bin, bits, chosen, prices);
        const int through = BRANCH[state][way];
        symbols[row + c] = residual[row + c] < 0 ? -chosen[through] : chosen[through];
        tables[row + c] = bin + ODD_STATES * (through >> 1);
        state = BEFORE[state][way];
    }
}
"""
)


@functools.cache
def kernel_on(device: torch.device) -> tuple:
    """The compiled search and `costs` on that device. Raises whatever says that torch cannot compile there."""
    with torch.cuda.device(device):
        return torch.cuda._compile_kernel(SOURCE, "search"), torch.from_numpy(costs()).to(device)


@torch.no_grad()
def viterbi_quantise(residual: Tensor, bins: Tensor, states: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """As trellis_search.viterbi_quantise, on tensors of one GPU. Raises RuntimeError where torch cannot compile."""
    kernel, bits = kernel_on(residual.device)
    cells, channels = residual.shape
    residual, bins, uniform = residual.float().contiguous(), bins.contiguous(), uniform.float().contiguous()
    ways = torch.empty(channels, cells, dtype=torch.uint8, device=residual.device)
    symbols = torch.empty(cells, channels, dtype=torch.int16, device=residual.device)
    tables = torch.empty_like(bins)
    if cells:
        with torch.cuda.device(residual.device):
            arguments = [residual, bins, states, uniform, bits, ways, symbols, tables, cells, channels]
            kernel(grid=(-(-cells // BLOCK), 1, 1), block=(BLOCK, 1, 1), args=arguments)
    return symbols, tables
