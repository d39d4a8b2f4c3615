// Mixtures of experts on a GPU: the router, the products of decode rows with the experts that they chose, and those of
// long chunks, grouped by expert.
// Run: tidal_bench_cuda_experts [small] [route|decode|grouped|TYPE]...; all without arguments, bf16, q4_0 and q4_K of
// types; small: in the shapes of devices of 99 KiB of shared memory a block.
#include <numeric>
#include <string>
#include <vector>

#include "backend/cuda/experts/chosen_products.h"
#include "backend/cuda/experts/grouped_products.h"
#include "backend/cuda/runtime/read_stream.h"
#include "matrices_fixture.cuh"

namespace {

struct Shape {
  const char* name;
  int width;
  tidal::Experts experts;
};
const Shape kShapes[] = {{"qwen3-30b-a3b", 2048, {.count = 128, .used = 8, .ffn = 768}},
                         {"qwen3.5-35b-a3b", 2048, {.count = 256, .used = 8, .ffn = 512}}};

/// Rows and what they chose: others in every one of kSets, so that no expert is still in the level-2 cache.
struct Chosen {
  static constexpr int kSets = 16;
  int used;
  Device<int32_t> experts;
  Device<float> weights, shared;

  Chosen(const Shape& shape, int rows)
      : used(shape.experts.used),
        experts(make(shape.experts, rows)),
        weights(std::vector<float>(static_cast<size_t>(rows) * used, 1.0f / static_cast<float>(used))),
        shared(rows) {}
  Choices at(int set, int rows) const {
    return {experts.data + static_cast<ptrdiff_t>(set % kSets) * rows * used, weights.data, shared.data};
  }

 private:
  static std::vector<int32_t> make(const tidal::Experts& experts, int rows) {
    Random random;
    std::vector<int32_t> all, order(experts.count);
    std::iota(order.begin(), order.end(), 0);
    for (int row = 0; row < kSets * rows; ++row) {
      for (int i = 0; i < experts.used; ++i) {
        const auto other = static_cast<int>((random() + 1) / 2 * static_cast<float>(experts.count - i - 1));
        std::swap(order[i], order[i + other]);
        all.push_back(order[i]);
      }
    }
    return all;
  }
};

void route(const Shape& shape) {
  const int count = shape.experts.count, used = shape.experts.used;
  Random random;
  const Device<float> router(random.floats(static_cast<size_t>(count) * shape.width, 0.05f));
  const Device<float> norm(std::vector<float>(shape.width, 1));
  for (const int rows : {1, 8, 32, 512, 2048}) {
    const Device<float> x(random.floats(static_cast<size_t>(rows) * shape.width, 2));
    const Device<float> logits(static_cast<size_t>(rows) * (count + 1)), weights(static_cast<size_t>(rows) * used),
        shared(rows);
    const Device<int32_t> experts(static_cast<size_t>(rows) * used);
    const Device<uint32_t> arrived(std::vector<uint32_t>(rows, 0));
    const RouteParams p{.x = x.data,
                        .norm = norm.data,
                        .epsilon = 1e-5f,
                        .router = router.data,
                        .rows = rows,
                        .width = shape.width,
                        .experts = shape.experts,
                        .few = rows <= kSkinnyRows,
                        .logits = logits.data,
                        .arrived = arrived.data,
                        .choices = {experts.data, weights.data, shared.data}};
    const double ms = time_graph(16, [&](int) {
      if (rows <= kSkinnyRows) return launch_route(p, stream);
      launch_route_chunks(p, stream);
    });
    std::printf("%s route, %4d rows: %7.2f us\n", shape.name, rows, 1e3 * ms);
  }
}

/// Matrices of all experts of a layer.
struct Layer {
  const Shape& shape;
  ggml_type type;
  size_t matrix;  // bytes of gate, up or down of all experts
  Weights w;

  Layer(const Shape& shape, ggml_type type)
      : shape(shape),
        type(type),
        matrix(bytes_of(type, static_cast<size_t>(shape.experts.count) * shape.experts.ffn, shape.width)),
        w(type, matrix * 2 + down_bytes(shape, type)) {}
  /// A matrix of whole tiles an expert.
  static size_t down_bytes(const Shape& shape, ggml_type type) {
    return bytes_of(type, static_cast<size_t>(shape.experts.count) * shape.width, shape.experts.ffn);
  }
  SkinnyMatrix gate() const { return w.at(0); }
  SkinnyMatrix up() const { return w.at(matrix); }
  SkinnyMatrix down() const { return w.at(2 * matrix); }
};

/// Gate and up, and down, of decode rows.
void decode(const Layer& layer, double rate) {
  const tidal::Experts& experts = layer.shape.experts;
  const int width = layer.shape.width, padded = padded_ffn(experts.ffn);
  for (const int rows : {1, 2, 4, 8}) {
    Random random;
    const Chosen chosen(layer.shape, rows);
    const Device<float> x(random.floats(static_cast<size_t>(rows) * width, 2)), norm(std::vector<float>(width, 1));
    const Device<float> y(random.floats(static_cast<size_t>(rows) * width, 2));
    const Device<Half> hidden(random.halves(static_cast<size_t>(rows) * experts.used * padded, 1));
    ChosenGateUp both;
    both.in.x = x.data;
    both.in.norm = norm.data;
    both.in.epsilon = 1e-5f;
    both.gate = layer.gate();
    both.up = layer.up();
    both.expert_rows = experts.ffn;
    both.hidden = hidden.data;
    both.rows = rows;
    both.cols = width;
    both.ffn = experts.ffn;
    both.used = experts.used;
    ChosenDown down;
    down.in.rounded = hidden.data;
    down.w = layer.down();
    down.y = y.data;
    down.rows = rows;
    down.cols = experts.used * padded;
    down.w_rows = width;
    down.add = true;
    down.ffn = experts.ffn;
    down.used = experts.used;
    const double ms = time_graph(Chosen::kSets, [&](int i) {
      both.choices = down.choices = chosen.at(i, rows);
      launch_chosen(both, stream);
      launch_chosen(down, stream);
    });
    const double bytes = static_cast<double>(layer.matrix) * 3 / experts.count * experts.used * rows;
    std::printf("%s %s decode, %d rows: %7.2f us (%3.0f %% of the stream)\n", layer.shape.name,
                ggml_type_name(layer.type), rows, 1e3 * ms, 100 * bytes / rate / 1e6 / ms);
  }
}

/// Groups, gate and up, down and the sum of the rows of a long chunk.
void grouped(const Layer& layer) {
  const tidal::Experts& experts = layer.shape.experts;
  const int width = layer.shape.width;
  for (const int rows : {64, 512, 2048}) {
    const size_t choices = static_cast<size_t>(rows) * experts.used;
    Random random;
    const Chosen chosen(layer.shape, rows);
    const Device<Half> x(random.halves(static_cast<size_t>(rows) * width, 2)), hidden(choices * experts.ffn);
    const Device<float> results(choices * width), y(static_cast<size_t>(rows) * width), weight(choices);
    const Device<int32_t> first(experts.count + 1), tile(experts.count + 1), wide(experts.count + 1), row(choices),
        place(choices);
    const ExpertGroups groups{first.data, tile.data, wide.data, row.data, weight.data, place.data};
    const bool tiles = groups_tiles(layer.type, experts.ffn);
    const auto panel = [&](const SkinnyMatrix& w, const SkinnyMatrix& up, int of) {
      return ExpertPanel{
          0, experts.count, reinterpret_cast<const Half*>(w.data), reinterpret_cast<const Half*>(up.data), 0, of, of};
    };
    const GroupedGateUp both{.groups = groups,
                             .panel = panel(layer.gate(), layer.up(), experts.ffn),
                             .tiles = {layer.type, layer.gate().data, layer.up().data, experts.ffn},
                             .x = x.data,
                             .hidden = hidden.data,
                             .cols = width,
                             .stride = experts.ffn};
    const GroupedDown down{.groups = groups,
                           .panel = panel(layer.down(), {}, width),
                           .tiles = {layer.type, layer.down().data, nullptr, width},
                           .hidden = hidden.data,
                           .results = results.data,
                           .cols = experts.ffn,
                           .stride = width};
    const double ms = time_graph(4, [&](int i) {
      launch_group(chosen.at(i, rows), rows, experts, groups, stream);
      tiles ? launch_grouped_tiles(both, stream) : launch_grouped(both, stream);
      tiles ? launch_grouped_tiles(down, stream) : launch_grouped(down, stream);
      launch_combine(results.data, place.data, rows, experts.used, width, y.data, false, stream);
    });
    const double products = 2.0 * 3 * static_cast<double>(choices) * width * experts.ffn;
    std::printf("%s %s grouped, %4d rows: %8.2f us (%.0f TFLOPS)\n", layer.shape.name, ggml_type_name(layer.type), rows,
                1e3 * ms, products / ms / 1e9);
  }
}

void run(const std::vector<std::string>& parts) {
  must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const Wanted wanted(parts, {GGML_TYPE_BF16, GGML_TYPE_Q4_0, GGML_TYPE_Q4_K});
  const double rate = measure_read_stream(stream);
  std::printf("read stream %.0f GB/s\n", rate);
  for (const Shape& shape : kShapes) {
    if (wanted("route")) route(shape);
    if (!wanted("decode") && !wanted("grouped")) continue;
    for (const ggml_type type : wanted.types) {
      const Layer layer(shape, type);
      if (wanted("decode")) decode(layer, rate);
      if (wanted("grouped")) grouped(layer);
    }
  }
}

}  // namespace

int main(int count, char** arguments) { return run_program(run, count, arguments); }
