// Attention of selected rows whose K and V lie in host memory, on a GPU: microseconds of a layer, the median of many
// steps of all layers in a CUDA graph, where selections change from step to step, beside the same on the device:
//   tidal_bench_cuda_host_rows [CONTEXT [BATCH [bf16 | q8_0]]]
// The share of rows that the row cache had is counted in the first layer.
#include <set>

#include "attention_fixture.cuh"

namespace {

constexpr int kLayers = 8, kSelected = 256, kSteps = 40, kWarm = 20;

/// A graph of all layers, once a step.
class Steps {
 public:
  Steps(Fixture& fixture, Role role) : fixture_(fixture) {
    fixture.attend(role, 0);
    fixture.sync();
    check(cudaStreamBeginCapture(fixture.stream(), cudaStreamCaptureModeThreadLocal), "capture");
    for (int l = 0; l < kLayers; ++l) fixture.attend(role, l);
    cudaGraph_t captured = nullptr;
    check(cudaStreamEndCapture(fixture.stream(), &captured), "capture");
    const cuda::Graph graph(captured);
    cudaGraphExec_t made = nullptr;
    check(cudaGraphInstantiate(&made, graph, 0), "capture");
    graph_ = cuda::GraphExec(made);
    check(cudaEventCreate(&begin_), "event"), check(cudaEventCreate(&end_), "event");
  }
  Steps(const Steps&) = delete;
  Steps& operator=(const Steps&) = delete;
  ~Steps() { cudaEventDestroy(begin_), cudaEventDestroy(end_); }

  /// Microseconds of a layer.
  double run() {
    check(cudaEventRecord(begin_, fixture_.stream()), "event");
    check(cudaGraphLaunch(graph_, fixture_.stream()), "replay");
    check(cudaEventRecord(end_, fixture_.stream()), "event");
    check(cudaEventSynchronize(end_), "replay");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin_, end_), "event");
    return 1e3 * milliseconds / kLayers;
  }

 private:
  Fixture& fixture_;
  cuda::GraphExec graph_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

/// The rows that a layer's cache holds, of all KV heads, or only those that step `used` has used.
std::set<std::pair<size_t, cuda::RowTag>> held(const Fixture& fixture, const Shape& shape, uint32_t used = 0) {
  const std::vector<cuda::RowTag> tags = fixture.tags(0);
  const size_t each = tags.size() / shape.kv_heads;
  std::set<std::pair<size_t, cuda::RowTag>> rows;
  for (size_t i = 0; i < tags.size(); ++i) {
    if (tags[i] == 0 || (used > 0 && tags[i] >> cuda::kRowBits != used)) continue;
    rows.emplace(i / each, tags[i] & ((cuda::RowTag{1} << cuda::kRowBits) - 1));
  }
  return rows;
}

/// Selections that go on as they do over text (docs/cuda_attention.md): of each, so many are of the step before, and so
/// many of one of the sixteen before that.
class Walk {
 public:
  Walk(const Fixture& fixture, int context, double stays, double returns)
      : fixture_(fixture),
        context_(context),
        stays_(stays),
        returns_(returns),
        recent_(fixture.rows() * fixture.units()) {}

  std::vector<int32_t> next() {
    std::vector<int32_t> all(recent_.size() * fixture_.stride(), -1);
    for (size_t u = 0; u < recent_.size(); ++u) {
      std::vector<std::vector<int32_t>>& sets = recent_[u];
      std::set<int32_t> set{context_ - 1};
      while (set.size() < size_t{kSelected}) {
        const double what = share_(random_);
        if (!sets.empty() && what < stays_ + returns_) {
          const auto& from = what < stays_ ? sets.back() : sets[random_() % sets.size()];
          set.insert(from[random_() % from.size()]);
        } else {
          set.insert(static_cast<int32_t>(random_() % context_));
        }
      }
      std::copy(set.begin(), set.end(), all.begin() + static_cast<ptrdiff_t>(u) * fixture_.stride());
      sets.emplace_back(set.begin(), set.end());
      if (sets.size() > 16) sets.erase(sets.begin());
    }
    return all;
  }

 private:
  const Fixture& fixture_;
  int context_;
  double stays_, returns_;
  std::vector<std::vector<std::vector<int32_t>>> recent_;  // of every row and unit
  std::mt19937 random_{3};
  std::uniform_real_distribution<double> share_{0, 1};
};

struct Setting {
  const char* name;
  Place place;
  int cached;
  double stays, returns;  // of selections; of Scan layers the first is how much of the queries does
};

void run(const Shape& shape, int context, int batch, Role role, const Setting& setting) {
  const std::vector<int> contexts(batch, context);
  Fixture fixture(shape, contexts, kLayers, Policy{Scope::Kv, Pooling::Sum, kSelected, 4, 64}, 2, setting.place,
                  setting.cached);
  fixture.select_at_random(1);
  Steps steps(fixture, role);
  Walk walk(fixture, context, setting.stays, setting.returns);
  std::mt19937 random{5};
  std::normal_distribution<float> normal(0, 1.7f);
  std::vector<float> q = fixture.queries();
  std::vector<double> times;
  double hits = 0, reads = 0;
  for (int step = 0; step < kSteps; ++step) {
    const auto number = static_cast<uint32_t>(step + 2);
    if (role == Role::Scan) {
      const auto stays = static_cast<float>(setting.stays), comes = std::sqrt(1 - stays * stays);
      for (float& value : q) value = stays * value + comes * normal(random);
      fixture.set_queries(q);
    } else {
      fixture.set_selected(walk.next());
    }
    const bool counts = setting.cached > 0 && step >= kWarm;
    const auto before = counts ? held(fixture, shape) : std::set<std::pair<size_t, cuda::RowTag>>();
    if (setting.place == Place::Host) fixture.step(number);
    const double time = steps.run();
    if (step >= kWarm) times.push_back(time);
    if (!counts) continue;
    for (const auto& row : held(fixture, shape, number)) hits += before.count(row) != 0 ? 1 : 0;
    reads += double(batch) * fixture.units() * kSelected;
  }
  std::sort(times.begin(), times.end());
  std::printf("%-12s %6d x %-2d %-7s %-34s %8.2f us (%.2f to %.2f)", shape.name, context, batch,
              role == Role::Scan ? "Scan" : "Sparse", setting.name, times[times.size() / 2], times.front(),
              times.back());
  if (setting.cached > 0) std::printf(", %.0f %% of the rows were there", 100 * hits / reads);
  std::printf("\n");
  std::fflush(stdout);
}

void run_all(const Shape& shape, int context, int batch) {
  const int cached = 8 * kSelected * batch;
  for (const Setting& setting : {Setting{"on the device", Place::Device, 0, 0.58, 0.32},
                                 Setting{"on the host, read in place", Place::Host, 0, 0.58, 0.32},
                                 Setting{"on the host, none stays", Place::Host, cached, 0, 0},
                                 Setting{"on the host, .58 stay, .32 return", Place::Host, cached, 0.58, 0.32},
                                 Setting{"on the host, all stay", Place::Host, cached, 1, 0}}) {
    run(shape, context, batch, Role::Sparse, setting);
  }
  for (const Setting& setting : {Setting{"on the device", Place::Device, 0, 0.98, 0},
                                 Setting{"on the host, read in place", Place::Host, 0, 0.98, 0},
                                 Setting{"on the host, queries .9", Place::Host, cached, 0.9, 0},
                                 Setting{"on the host, queries .98", Place::Host, cached, 0.98, 0},
                                 Setting{"on the host, queries 1", Place::Host, cached, 1, 0}}) {
    run(shape, context, batch, Role::Scan, setting);
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    cuda::open_device();
    const int context = argc > 1 ? std::atoi(argv[1]) : 32768, batch = argc > 2 ? std::atoi(argv[2]) : 1;
    const KvType type = argc > 3 && std::string(argv[3]) == "q8_0" ? KvType::Q8 : KvType::Bf16;
    for (const Shape& shape : {Shape{"LLaMA-2-7B", 32, 32, 128, type}, Shape{"Llama-3-8B", 32, 8, 128, type}}) {
      run_all(shape, context, batch);
    }
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
