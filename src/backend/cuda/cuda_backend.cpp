#include "backend/cuda/cuda_backend.h"

#include <algorithm>

#include "backend/cuda/attention/attention.h"
#include "backend/cuda/completion/completion.h"
#include "backend/cuda/full_below.h"
#include "backend/cuda/models.h"
#include "backend/cuda/pass/graphs.h"
#include "backend/cuda/pass/op_list.h"
#include "backend/cuda/pass/pass_launcher.h"
#include "backend/cuda/pass/results.h"
#include "backend/cuda/pass/step_upload.h"
#include "backend/cuda/products/matrices.h"
#include "backend/cuda/row_cache/row_cache.h"
#include "backend/cuda/runtime/device.h"
#include "backend/cuda/runtime/error.h"
#include "backend/cuda/runtime/read_stream.h"
#include "backend/cuda/runtime/split_memory.h"
#include "backend/cuda/scan/sketch_blocks.h"
#include "backend/cuda/weights/weights.h"
#include "core/error.h"

namespace tidal::cuda {
namespace {

/// A chunk with which products are bound by arithmetic, and attention has CTAs for all multiprocessors twice.
constexpr int kPrefillRows = 2048;

/// Writes the operations of a pass down and launches them when something waits for them: logits(), or an access to
/// memory. All work is on one stream.
class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const Options& options)
      : use_graphs_(options.graphs),
        stream_(make_stream()),
        weights_(options.quantised),
        attention_(options.clusters),
        completed_(options.clusters) {}
  ~CudaBackend() override { cudaStreamSynchronize(stream_); }
  CudaBackend(const CudaBackend&) = delete;
  CudaBackend& operator=(const CudaBackend&) = delete;

  std::string_view name() const override { return "cuda"; }
  std::string device() const override { return device_name(); }
  int decode_rows() const override { return kDecodeRows; }
  int prefill_rows() const override { return kPrefillRows; }
  double read_stream() override { return measure_read_stream(stream_); }
  int full_below(const Hyperparameters& hp, std::span<const Role> roles, const Policy& policy,
                 KvType type) const override {
    return cuda::full_below(hp, roles, policy, type);
  }

  Buffer allocate(size_t bytes, std::string_view what) override {
    return allocate_device(bytes, std::string(what).c_str());
  }
  std::string host_kv_problem() const override { return split_memory_problem(); }
  std::unique_ptr<KvMemory> allocate_kv(const KvRoom& room, std::string_view what) override {
    return std::make_unique<SplitKvMemory>(room, std::string(what).c_str());
  }
  Weight upload(const Weight& host) override { return weights_.upload(host, stream_); }
  Weight upload_exact(const Weight& host) override { return weights_.upload_floats(host, stream_); }
  ggml_type matrix_type(ggml_type type) const override { return weights_.matrix_type(type); }
  int64_t matrix_bytes(ggml_type type, int64_t rows, int64_t cols) const override {
    return weights_.matrix_bytes(type, rows, cols);
  }
  std::string unsupported(const Hyperparameters& hp) const override { return cuda::unsupported(hp); }
  bool keeps(KvType type, int head_dim) const override {
    return type == KvType::Bf16 || (type == KvType::Q8 && head_dim <= 256);
  }
  bool completes() const override { return true; }
  int64_t completion_bytes(const Hyperparameters& hp, const Policy& policy, int rows, int context) const override {
    return completed_.workspace_bytes(hp, policy, rows, context);
  }
  int64_t free_bytes() const override { return static_cast<int64_t>(free_device_memory()); }
  int64_t reserved_bytes(const Hyperparameters& hp, int max_rows, int max_context) const override;
  void copy(std::byte* to, const std::byte* from, size_t bytes) override;
  void write(std::byte* to, const std::byte* from, size_t bytes) override;
  void read(std::byte* to, const std::byte* from, size_t bytes) override;
  void sketch(KvLayer kv, std::span<const BlockId> blocks) override;
  void reserve(const Hyperparameters& hp, int max_rows, int max_context) override;
  void cache_rows(const RowCacheRoom& room) override;
  int64_t row_cache_bytes(const RowCacheRoom& room) const override { return RowCache::bytes(room); }

  void begin(const Hyperparameters& hp, const Batch& batch) override;
  void embed(const Weight& embedding, const Batch& batch, Rows x) override;
  void layer_inputs(const LayerInputs& weights, const Batch& batch, Rows x, Rows inputs) override;
  void qkv(const Layer& layer, const Batch& batch, Rows x, Rows q, KvLayer kv) override;
  void attend(const Batch& batch, int layer, Rows q, KvLayer kv, const Selection& selection, Rows out,
              const Weight& sink_logits) override;
  void project(const Layer& layer, Rows out, Rows x) override;
  void mlp(const Layer& layer, Rows x) override;
  void gate(const Layer& layer, Rows x, Rows out) override;
  void delta(const Layer& layer, const Batch& batch, int index, Rows x) override;
  void experts(const Layer& layer, Rows x) override;
  void finish(const Layer& layer, int index, Rows inputs, Rows x) override;
  void logits(const Weight& norm, const Weight& output, const Batch& batch, Rows x, std::span<float> logits) override;
  void likely(const Weight& norm, const Weight& output, const Batch& batch, Rows x, int count,
              std::span<LikelyToken> out) override;

  int kernels() const { return graphs_.kernels(); }
  int captured() const { return graphs_.captured(); }

 private:
  /// Ends a pass with logits, or with the most likely tokens of each row. take(first, rows) when a slice of the logit
  /// rows is in host memory.
  template <typename Take>
  void end_pass(const LogitsOp& op, const Batch& batch, Take&& take);
  /// Makes room for what the batch's chunks estimate in a layer.
  void make_completion_room(const Batch& batch, int layer);
  /// Launches what is written down. `whole`: it is a whole pass, which may come again.
  void flush(bool whole = false);
  void launch() { launcher_.launch(list_, hp_, long_chunks_, stream_); }
  void synchronise(const char* what) { check(cudaStreamSynchronize(stream_), what); }

  bool use_graphs_;
  Stream stream_;
  DeviceWeights weights_;
  Matrices matrices_;
  DecodeAttention attention_;
  CompletedAttention completed_;
  RowCache row_cache_;
  StepUpload upload_;
  Graphs graphs_;
  Results results_;
  PassLauncher launcher_{matrices_, attention_, completed_, upload_, results_};
  Buffer listed_blocks_;  // of sketch()

  Hyperparameters hp_;  // of reserve()
  int max_rows_ = 0, max_context_ = 0;
  OpList list_;
  std::vector<int> long_chunks_;  // of the pass: rows of each chunk that is not of decode rows
};

void CudaBackend::copy(std::byte* to, const std::byte* from, size_t bytes) {
  flush();
  // Default, here and below: K and V may lie in host memory. Copies from there to the host need not wait for the stream
  // by themselves.
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_), "copying on the device");
}

void CudaBackend::write(std::byte* to, const std::byte* from, size_t bytes) {
  flush();
  synchronise("copying to the device");
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_), "copying to the device");
  synchronise("copying to the device");
}

void CudaBackend::read(std::byte* to, const std::byte* from, size_t bytes) {
  flush();
  synchronise("copying from the device");
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_), "copying from the device");
  synchronise("copying from the device");
}

void CudaBackend::sketch(KvLayer kv, std::span<const BlockId> blocks) {
  if (blocks.empty()) return;
  flush();
  if (listed_blocks_.bytes() < blocks.size_bytes()) {
    listed_blocks_ = allocate_device(blocks.size_bytes(), "list of blocks to be sketched");
  }
  write(listed_blocks_.as<std::byte>(), reinterpret_cast<const std::byte*>(blocks.data()), blocks.size_bytes());
  launch_sketch_blocks(kv, listed_blocks_.as<BlockId>(), static_cast<int>(blocks.size()), stream_);
}

int64_t CudaBackend::reserved_bytes(const Hyperparameters& hp, int max_rows, int max_context) const {
  return Matrices::workspace_bytes(hp, max_rows) +
         static_cast<int64_t>(attention_.workspace_bytes(hp, max_rows, max_context) +
                              StepUpload::bytes(max_rows, max_context, !hp.windows.empty()) +
                              Results::bytes(hp.vocab, max_rows));
}

void CudaBackend::reserve(const Hyperparameters& hp, int max_rows, int max_context) {
  flush();
  synchronise("making room for a pass");
  hp_ = hp;
  max_rows_ = max_rows;
  max_context_ = max_context;
  // Even where nothing moves: what a graph has in it beside addresses comes from the shape of the model.
  graphs_.clear();
  // Generations of another memory may be the same numbers.
  row_cache_ = RowCache();
  matrices_.reserve(hp, max_rows);
  attention_.reserve(hp, max_rows, max_context);
  completed_.reserve(hp, max_rows, max_context);
  upload_.reserve(max_rows, max_context, !hp.windows.empty());
  launcher_.reserve(max_context);
  results_.reserve(hp.vocab, max_rows);
}

void CudaBackend::cache_rows(const RowCacheRoom& room) {
  if (row_cache_.has(room)) return;
  flush();
  synchronise("making room for rows of K and V");
  graphs_.clear();
  const RowCacheRoom wanted = row_cache_.with(room);
  row_cache_ = RowCache();  // before there is more
  row_cache_ = RowCache(wanted);
}

void CudaBackend::begin(const Hyperparameters& hp, const Batch& batch) {
  flush();
  if (!same_shape(hp, hp_)) fail("cuda backend: a pass of another model than was reserved for");
  if (batch.rows() > max_rows_) fail("cuda backend: {} rows in a pass, reserved for {}", batch.rows(), max_rows_);
  PassShape shape;
  shape.rows = batch.rows();
  shape.chunks = static_cast<int>(batch.chunks.size());
  long_chunks_.clear();
  for (const Chunk& chunk : batch.chunks) {
    if (chunk.context() > max_context_) {
      fail("cuda backend: a context of {}, reserved for {}", chunk.context(), max_context_);
    }
    shape.longest = std::max(shape.longest, chunk.rows);
    shape.on_host = shape.on_host || chunk.on_host();
    if (chunk.rows > kDecodeRows) {
      long_chunks_.push_back(chunk.rows);
      continue;
    }
    ++shape.decode_chunks;
    shape.decode_rows += chunk.rows;
    shape.fills = shape.fills || chunk.first_full() < chunk.end_full();
  }
  upload_.begin(batch, stream_);
  shape.tables = upload_.tables();
  shape.window_tables = upload_.window_tables();
  list_.shape = shape;
  list_.ops.emplace_back(AnglesOp{});
}

void CudaBackend::embed(const Weight& embedding, const Batch&, Rows x) {
  list_.ops.emplace_back(EmbedOp{embedding, x.data});
}

void CudaBackend::layer_inputs(const LayerInputs& weights, const Batch&, Rows x, Rows inputs) {
  list_.ops.emplace_back(LayerInputsOp{weights, x.data, inputs.data});
}

void CudaBackend::qkv(const Layer& layer, const Batch&, Rows x, Rows q, KvLayer kv) {
  list_.ops.emplace_back(QkvOp{list_.add(layer), x.data, q.data, kv});
}

void CudaBackend::make_completion_room(const Batch& batch, int layer) {
  for (int c = 0; c < list_.shape.decode_chunks; ++c) {
    const Chunk& chunk = batch.chunks[c];
    if (chunk.role(layer) != Role::Scan || !chunk.policy.completion || completed_.has_room(chunk.policy)) continue;
    flush();
    synchronise("making room for completed attention");
    graphs_.clear();
    completed_.make_room(chunk.policy);
  }
}

void CudaBackend::attend(const Batch& batch, int layer, Rows q, KvLayer kv, const Selection& selection, Rows out,
                         const Weight& sink_logits) {
  if (!upload_.has_policies(batch)) {
    flush();
    upload_.set_policies(batch, stream_);
  }
  make_completion_room(batch, layer);
  // Neighbours that do the same go together.
  AttendOp run;
  const auto joins = [&](AttendOp op) {
    op.first_row = run.first_row;
    op.rows = run.rows;
    return op == run;
  };
  const auto end_run = [&] {
    if (run.rows > 0) list_.ops.emplace_back(run);
  };
  for (int c = 0; c < list_.shape.decode_chunks; ++c) {
    const Chunk& chunk = batch.chunks[c];
    AttendOp op;
    op.first_row = chunk.first_row;
    op.rows = chunk.rows;
    op.role = chunk.role(layer);
    op.window = hp_.window(layer);
    op.sink_logits = sink_logits.floats();
    op.q = q;
    op.kv = kv;
    op.out = out;
    if (op.role != Role::Dense) {
      op.scope = chunk.policy.scope;
      op.selection = selection;
      if (list_.shape.on_host && reads_selected(op.role)) op.row_cache = row_cache_.layer(layer, kv, chunk);
    }
    if (selects(op.role)) op.pooling = chunk.policy.pooling;
    if (op.role == Role::Scan) {
      op.sketch_bits = chunk.policy.sketch_bits;
      op.completion = chunk.policy.completion;
    }
    if (run.rows > 0 && joins(op)) {
      run.rows += op.rows;
      continue;
    }
    end_run();
    run = op;
  }
  end_run();
  for (int c = list_.shape.decode_chunks; c < list_.shape.chunks; ++c) {
    const Chunk& chunk = batch.chunks[c];
    list_.ops.emplace_back(
        PrefillOp{c, chunk.first_row, chunk.rows, chunk.position, hp_.window(layer), sink_logits.floats(), q, kv, out});
  }
}

void CudaBackend::gate(const Layer& layer, Rows x, Rows out) {
  list_.ops.emplace_back(GateOp{list_.add(layer), x.data, out.data});
}

void CudaBackend::delta(const Layer& layer, const Batch&, int index, Rows x) {
  list_.ops.emplace_back(DeltaOp{list_.add(layer), index, x.data});
}

void CudaBackend::project(const Layer& layer, Rows out, Rows x) {
  list_.ops.emplace_back(ProjectOp{list_.add(layer), out.data, x.data});
}

void CudaBackend::mlp(const Layer& layer, Rows x) { list_.ops.emplace_back(MlpOp{list_.add(layer), x.data}); }

void CudaBackend::experts(const Layer& layer, Rows x) { list_.ops.emplace_back(ExpertsOp{list_.add(layer), x.data}); }

void CudaBackend::finish(const Layer& layer, int index, Rows inputs, Rows x) {
  list_.ops.emplace_back(FinishOp{list_.add(layer), index, inputs.data, x.data});
}

template <typename Take>
void CudaBackend::end_pass(const LogitsOp& op, const Batch& batch, Take&& take) {
  const int wanted = static_cast<int>(batch.logit_rows.size());
  const int most = std::min(kLogitRows, max_rows_);
  // Chunks that want few rows take the skinny product, even long ones. Every chunk decides for itself, so that its
  // logits do not depend on its company; neighbours that take the skinny product go together.
  int begin = 0;  // of the slice
  bool decode = true;
  const auto run = [&](int end) {
    while (begin < end) {
      const int rows = std::min(end - begin, most);
      LogitsOp slice = op;
      slice.first = begin;
      slice.rows = rows;
      slice.decode = decode;
      list_.ops.emplace_back(slice);
      flush(rows == wanted);
      synchronise("computing logits");
      take(static_cast<size_t>(begin), static_cast<size_t>(rows));
      begin += rows;
    }
  };
  int end = 0;
  for (const Chunk& chunk : batch.chunks) {
    int next = end;
    while (next < wanted && batch.logit_rows[next] < chunk.first_row + chunk.rows) ++next;
    const bool few = next - end <= kDecodeRows;
    if (next > end && !(few && decode)) {
      run(end);
      decode = few;
    }
    end = next;
  }
  run(end);
  flush(wanted == 0);
}

void CudaBackend::logits(const Weight& norm, const Weight& output, const Batch& batch, Rows x,
                         std::span<float> logits) {
  const auto vocab = static_cast<size_t>(output.rows);
  end_pass({.norm = norm, .output = output, .x = x.data}, batch,
           [&](size_t first, size_t rows) { results_.read(logits.subspan(first * vocab, rows * vocab)); });
}

void CudaBackend::likely(const Weight& norm, const Weight& output, const Batch& batch, Rows x, int count,
                         std::span<LikelyToken> out) {
  const auto width = static_cast<size_t>(count);
  end_pass({.norm = norm, .output = output, .likely = count, .x = x.data}, batch,
           [&](size_t first, size_t rows) { results_.read(out.subspan(first * width, rows * width)); });
}

void CudaBackend::flush(bool whole) {
  if (list_.ops.empty()) return;
  try {
    // Only what starts at the beginning of a pass and has no long chunk comes again as it is.
    const bool repeats =
        whole && std::holds_alternative<AnglesOp>(list_.ops.front()) && list_.shape.decode_rows == list_.shape.rows;
    if (use_graphs_ && repeats) {
      graphs_.run(list_, stream_, [this] { launch(); });
    } else {
      launch();
    }
  } catch (...) {
    list_.clear();
    throw;
  }
  list_.clear();
}

}  // namespace

bool has_device() {
  try {
    open_device();
    return true;
  } catch (const Error&) {
    return false;
  }
}

std::unique_ptr<Backend> make_backend(const Options& options) {
  open_device();
  return std::make_unique<CudaBackend>(options);
}

int kernels_of_a_step(const Backend& backend) { return dynamic_cast<const CudaBackend&>(backend).kernels(); }
int captured_steps(const Backend& backend) { return dynamic_cast<const CudaBackend&>(backend).captured(); }

}  // namespace tidal::cuda
