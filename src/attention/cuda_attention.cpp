// The attention of include/tidal_attention.h on a stream of an NVIDIA GPU.
#include <algorithm>
#include <cstdint>
#include <new>
#include <optional>
#include <utility>

#include "attention/attention.h"
#include "attention/cuda_rows.h"
#include "backend/cuda/attention/attention.h"
#include "backend/cuda/runtime/device.h"
#include "backend/cuda/runtime/error.h"
#include "backend/cuda/scan/sketch_blocks.h"

namespace tidal {
namespace {

constexpr int kLeastCapability = 80;

/// Makes a device current, and that which was before in the end.
class CurrentDevice {
 public:
  explicit CurrentDevice(int index) { cuda::check(change_to(index), "making a device current"); }
  /// Where it cannot, all stays as it is.
  CurrentDevice(int index, std::nothrow_t) noexcept { change_to(index); }
  ~CurrentDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  cudaError_t change_to(int index) noexcept {
    if (const cudaError_t code = cudaGetDevice(&before_); code != cudaSuccess) return code;
    if (index == before_) return cudaSuccess;
    const cudaError_t code = cudaSetDevice(index);
    changed_ = code == cudaSuccess;
    return code;
  }

  int before_ = 0;
  bool changed_ = false;
};

[[noreturn]] void refuse(int32_t code, const std::string& sentence) { throw AttentionError(code, sentence); }

void check_elements(const char* name, const void* data, int64_t stride) {
  constexpr uintptr_t kBytes = 16;
  constexpr int64_t kElements = 8;
  if (reinterpret_cast<uintptr_t>(data) % kBytes != 0 || stride % kElements != 0)
    refuse(TIDAL_ATTENTION_INVALID,
           fmt::format("{}: expected an address that is a multiple of 16 and a stride that is one "
                       "of 8, on CUDA",
                       name));
}

class CudaAttention final : public tidal_attention {
 public:
  explicit CudaAttention(const tidal_attention_options& given);
  ~CudaAttention() override;

  void append(const tidal_attention_cache& cache, const Append& append, void* stream) override;
  void sketch(const tidal_attention_cache& cache, int count, const int32_t* blocks, void* stream) override;
  void attend(const tidal_attention_cache& cache, const Attend& attend, void* stream) override;

 private:
  struct Memory {
    Buffer q, out, chunks, row_chunk, positions, selected, counts;
  };
  cuda::StepTables tables(const Attend& attend) const;

  int width_, room_;  ///< of a row's elements; of a set's positions
  std::optional<cuda::DecodeAttention> attention_{std::in_place};
  Memory memory_;
};

CudaAttention::CudaAttention(const tidal_attention_options& given)
    : tidal_attention(given), width_(given.heads * given.head_dim), room_(most_selected(policy_of(given))) {
  const CurrentDevice current(given.device_index);
  const auto rows = static_cast<size_t>(given.max_rows);
  const size_t floats = sizeof(float) * rows * static_cast<size_t>(width_);
  const size_t sets = rows * static_cast<size_t>(given.kv_heads);
  memory_.q = cuda::allocate_device(floats, "queries");
  memory_.out = cuda::allocate_device(floats, "outputs");
  memory_.chunks = cuda::allocate_device(sizeof(cuda::DeviceChunk) * rows, "tables");
  memory_.row_chunk = cuda::allocate_device(sizeof(int32_t) * rows, "tables");
  memory_.positions = cuda::allocate_device(sizeof(int32_t) * rows, "tables");
  memory_.selected = cuda::allocate_device(sizeof(int32_t) * sets * static_cast<size_t>(room_), "selected positions");
  memory_.counts = cuda::allocate_device(sizeof(int32_t) * sets, "selected positions");
  attention_->reserve(shape_of(given), given.max_rows, given.max_context);
}

CudaAttention::~CudaAttention() {
  const CurrentDevice current(options.device_index, std::nothrow);  // what is freed is the device's
  memory_ = {};
  attention_.reset();
}

void CudaAttention::append(const tidal_attention_cache& cache, const Append& append, void* stream) {
  check_elements("key", append.key, append.key_stride);
  check_elements("value", append.value, append.value_stride);
  const CurrentDevice current(options.device_index);
  auto* const on = static_cast<cudaStream_t>(stream);
  const KvLayer kv = layer_of(options, cache);
  cuda::launch_append_rows({append.rows, static_cast<const Bf16*>(append.key), static_cast<const Bf16*>(append.value),
                            append.key_stride, append.value_stride, append.slots, kv},
                           on);
  cuda::launch_sketch_slots(kv, append.slots, append.rows, on);
}

void CudaAttention::sketch(const tidal_attention_cache& cache, int count, const int32_t* blocks, void* stream) {
  const CurrentDevice current(options.device_index);
  cuda::launch_sketch_blocks(layer_of(options, cache), blocks, count, static_cast<cudaStream_t>(stream));
}

cuda::StepTables CudaAttention::tables(const Attend& attend) const {
  cuda::StepTables tables = {};
  tables.positions = memory_.positions.as<int32_t>();
  tables.row_chunk = memory_.row_chunk.as<int32_t>();
  tables.blocks = attend.block_table;
  tables.chunks = memory_.chunks.as<cuda::DeviceChunk>();
  return tables;
}

void CudaAttention::attend(const tidal_attention_cache& cache, const Attend& attend, void* stream) {
  check_elements("q", attend.q, attend.q_stride);
  check_elements("out", attend.out, attend.out_stride);
  if (attend.table_stride * attend.rows > INT32_MAX)
    refuse(TIDAL_ATTENTION_INVALID,
           fmt::format("table_stride: {}, expected less than 2^31 over the {} rows", attend.table_stride, attend.rows));
  const CurrentDevice current(options.device_index);
  auto* const on = static_cast<cudaStream_t>(stream);
  const int rows = attend.rows;
  cuda::PrepareRowsArgs prepare;
  prepare.rows = rows;
  prepare.contexts = attend.contexts;
  prepare.table_stride = static_cast<int>(attend.table_stride);
  prepare.budget = policy_of(options).budget;
  prepare.chunks = memory_.chunks.as<cuda::DeviceChunk>();
  prepare.row_chunk = memory_.row_chunk.as<int32_t>();
  prepare.positions = memory_.positions.as<int32_t>();
  prepare.q = static_cast<const Bf16*>(attend.q);
  prepare.q_stride = attend.q_stride;
  prepare.width = width_;
  prepare.factor = query_factor(options);
  prepare.to = memory_.q.as<float>();
  cuda::launch_prepare_rows(prepare, on);
  cuda::AttendParams params;
  params.tables = tables(attend);
  params.rows = rows;
  params.role = Role::Scan;
  params.fresh_tables = true;
  params.scope = Scope::Kv;
  params.pooling = Pooling::Sum;
  params.sketch_bits = options.sketch_bits;
  params.q = {memory_.q.as<float>(), rows, width_};
  params.kv = layer_of(options, cache);
  params.selection = {memory_.selected.as<int32_t>(), memory_.counts.as<int32_t>(), options.kv_heads * room_,
                      options.kv_heads};
  params.out = {memory_.out.as<float>(), rows, width_};
  attention_->attend(params, on);
  cuda::launch_round_rows(memory_.out.as<float>(), rows, width_, static_cast<Bf16*>(attend.out), attend.out_stride, on);
  if (!attend.positions) return;
  cuda::launch_export_sets(
      {rows, options.kv_heads, attend.contexts, policy_of(options).budget, room_, most_selected_of(options),
       memory_.selected.as<int32_t>(), memory_.counts.as<int32_t>(), attend.positions, attend.counts},
      on);
}

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return count;
}

/// 10 * major + minor.
int capability_of(int device) {
  int major = 0, minor = 0;
  cuda::check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "the device's properties");
  cuda::check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "the device's properties");
  return 10 * major + minor;
}

}  // namespace

bool has_cuda_attention() { return device_count() > 0; }

std::unique_ptr<tidal_attention> make_cuda_attention(const tidal_attention_options& options) {
  const int devices = device_count();
  if (options.device_index < 0 || options.device_index >= devices)
    refuse(TIDAL_ATTENTION_UNSUPPORTED,
           fmt::format("device_index: {}, there are {} CUDA devices", options.device_index, devices));
  if (options.dtype != TIDAL_ATTENTION_BF16)
    refuse(TIDAL_ATTENTION_UNSUPPORTED, "dtype: float32 on CUDA, expected bf16");
  if (options.head_dim != 64 && options.head_dim != 128)
    refuse(TIDAL_ATTENTION_UNSUPPORTED, fmt::format("head_dim: {}, expected 64 or 128 on CUDA", options.head_dim));
  if (const int capability = capability_of(options.device_index); capability < kLeastCapability)
    refuse(TIDAL_ATTENTION_UNSUPPORTED,
           fmt::format("device_index: a device of compute capability {:.1f}, expected {:.1f} or later",
                       capability / 10.0, kLeastCapability / 10.0));
  return std::make_unique<CudaAttention>(options);
}

}  // namespace tidal
