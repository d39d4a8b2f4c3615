#include "backend/cuda/products/matmul_skinny.h"

#include "backend/cuda/products/matmul_launch.cuh"
#include "backend/cuda/products/matmul_quantised.h"
#include "backend/cuda/products/matmul_units.cuh"

namespace tidal::cuda {
namespace {

using skinny::GateUpEpilogue;
using skinny::GateUpPairs;
using skinny::launch_variant;
using skinny::QkvEpilogue;
using skinny::RowsEpilogue;
using W = skinny::Bf16Units;

/// Shared memory of a variant with a piece of x with every piece of W.
template <class Streaming, int NT, int D>
constexpr int kStreamed = skinny::Layout<W, Streaming::kM, NT, D, true>::kFixed;
template <class Streaming, int NT, int D>
bool streams() {
  return kStreamed<Streaming, NT, D> <= shared_memory_limit();
}

/// x whole in shared memory, where it fits and is used for more than one tile; a piece of x with every piece of W
/// otherwise.
template <class Resident, class Streaming, int NT, int D>
void launch_rows(const typename Resident::Params& params, cudaStream_t stream) {
  const auto fits = [&]<int kDepth>(std::integral_constant<int, kDepth>) {
    return skinny::shared_bytes<W, Resident, NT, kDepth, false>(params.rows, params.cols) <= shared_memory_limit();
  };
  if constexpr (NT == 1) {
    if (fits(std::integral_constant<int, 10>{})) return launch_variant<W, Resident, NT, 10, false>(params, stream);
    if (fits(std::integral_constant<int, 8>{})) return launch_variant<W, Resident, NT, 8, false>(params, stream);
  }
  const bool once = params.rows > 8 && Streaming::tiles(params) <= multiprocessors();
  if (params.in.x || (fits(std::integral_constant<int, D>{}) && !once)) {
    return launch_variant<W, Resident, NT, D, false>(params, stream);
  }
  if constexpr (NT <= 2) {
    if (!streams<Streaming, NT, 4>()) {
      // A device of less than kQuantisedMemory: two slots of the ring, of as many rows as one launch has there.
      static_assert(kStreamed<Streaming, 2, 2> <= kLeastSharedMemory);
      return launch_variant<W, Streaming, 2, 2, true>(params, stream);
    }
  }
  launch_variant<W, Streaming, NT, 4, true>(params, stream);
}

/// `One` up to 8 rows, the others for more.
template <class One, class Resident, class Streaming>
void launch_bf16(const typename Resident::Params& params, cudaStream_t stream) {
  skinny::launch_by(streams<Streaming, 4, 4>() ? kSkinnyRows : kSkinnyRows / 2, params, [&](const auto& part) {
    if (part.rows <= 8) {
      launch_rows<One, Streaming, 1, 5>(part, stream);
    } else if (part.rows <= 16) {
      launch_rows<Resident, Streaming, 2, 4>(part, stream);
    } else {
      launch_rows<Resident, Streaming, 4, 4>(part, stream);
    }
  });
}

}  // namespace

bool skinny_takes_floats(int rows, int cols, bool quantised) {
  if (quantised) return rows == 1 && (shared_memory_limit() >= kQuantisedMemory || skinny::small_takes_floats(cols));
  return rows <= kFusedRows &&
         skinny::shared_bytes<W, GateUpEpilogue, 1, 5, false>(rows, cols) <= shared_memory_limit();
}

void launch_skinny_rows(const SkinnyRows& params, cudaStream_t stream) {
  if (params.w.type != GGML_TYPE_BF16) return launch_quantised(params.w.type, params, stream);
  launch_bf16<RowsEpilogue<1>, RowsEpilogue<1>, RowsEpilogue<2>>(params, stream);
}

void launch_skinny_gate_up(const SkinnyGateUp& params, cudaStream_t stream) {
  if (params.gate.type != GGML_TYPE_BF16) return launch_quantised(params.gate.type, params, stream);
  launch_bf16<GateUpEpilogue, GateUpPairs, GateUpPairs>(params, stream);
}

void launch_skinny_qkv(const SkinnyQkv& qkv, cudaStream_t stream) {
  // Matrices of one type go together.
  SkinnyQkv params = qkv;
  bool one_type = true;
  bool done[3] = {};
  for (int i = 0; i < 3; ++i) {
    done[i] = !params.w[i].data;
    one_type = one_type && (done[i] || params.w[i].type == params.w[0].type);
  }
  if (!one_type && !params.in.packed && params.rows > 1 && params.rows <= kQuantisedRows) {
    params.in.packed = skinny::launch_pack(params.in, params.rows, params.cols, stream);  // once for all
  }
  for (int i = 0; i < 3; ++i) {
    if (done[i]) continue;
    SkinnyQkv part = params;
    for (int k = 0; k < 3; ++k) {
      const bool same = !done[k] && params.w[k].type == params.w[i].type;
      if (same) {
        done[k] = true;
      } else {
        part.w[k] = {};
      }
    }
    if (params.w[i].type != GGML_TYPE_BF16) {
      launch_quantised(params.w[i].type, part, stream);
    } else {
      launch_bf16<QkvEpilogue, QkvEpilogue, QkvEpilogue>(part, stream);
    }
  }
}

}  // namespace tidal::cuda
