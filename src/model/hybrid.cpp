#include "model/hybrid.h"

#include "core/error.h"

namespace tidal {

void read_delta(const GgufFile& file, Keys& keys, const Family& family, int all, Hyperparameters& hp) {
  if (!family.hybrid) return;
  constexpr int kMostTaps = 64;  // published models have 4
  hp.gated_attention = true;
  hp.delta.taps = keys.size("ssm.conv_kernel");
  hp.delta.head_dim = keys.size("ssm.state_size");
  hp.delta.key_heads = keys.size("ssm.group_count");
  hp.delta.value_heads = keys.size("ssm.time_step_rank");
  hp.delta.neighbours = family.delta_neighbours;
  const int inner = keys.size("ssm.inner_size");
  keys.report_missing();
  const DeltaNet& net = hp.delta;
  if (net.taps < 2 || net.taps > kMostTaps) {
    fail("{}: the convolution looks at {} rows, expected 2 to {}", file.path(), net.taps, kMostTaps);
  }
  constexpr int kMostHeads = 1 << 12, kMostDims = 1 << 10;
  if (net.key_heads > kMostHeads || net.value_heads > kMostHeads || net.head_dim > kMostDims) {
    fail("{}: {} key heads and {} value heads of {} elements are beyond any known model", file.path(), net.key_heads,
         net.value_heads, net.head_dim);
  }
  if (net.key_heads < 1 || net.value_heads % net.key_heads != 0) {
    fail("{}: {} value heads cannot share {} key heads", file.path(), net.value_heads, net.key_heads);
  }
  if (inner != net.value_width()) {
    fail("{}: key '{}.ssm.inner_size' is {}, expected {} for {} value heads of {} elements", file.path(),
         hp.architecture, inner, net.value_width(), net.value_heads, net.head_dim);
  }
  // As libllama: the array, else all but every so-manieth.
  const auto kinds = keys.integers("attention.recurrent_layers", all);
  const int64_t interval = keys.integer_or("full_attention_interval", 4);
  if (!kinds && interval < 1) fail("{}: every {}th layer attends, expected at least 1", file.path(), interval);
  for (int l = 0; l < hp.layers; ++l) {
    hp.recurrent.push_back(kinds ? (*kinds)[static_cast<size_t>(l)] != 0 : (l + 1) % interval != 0);
  }
  if (hp.recurrent_layers() == hp.layers) fail("{}: all layers are recurrent, expected one that attends", file.path());
}

void check_mixed_sections(const GgufFile& file, const std::string& architecture, int dims) {
  const std::string key = architecture + ".rope.dimension_sections";
  const auto sections = file.integers(key);
  if (!sections || sections->size() != 4) fail("{}: key '{}' is missing or not 4 numbers", file.path(), key);
  int64_t all = 0;
  for (const int64_t count : *sections) {
    if (count < 0 || count > dims) fail("{}: key '{}' holds {}, expected 0 to {}", file.path(), key, count, dims);
    all += count;
  }
  if (all == 0 || all > dims) {
    fail("{}: key '{}' gives {} pairs to the axes, expected 1 to {}", file.path(), key, all, dims);
  }
  for (int64_t pair = 0; pair < std::min<int64_t>(all, dims / 2); ++pair) {
    if (pair < 3 * (*sections)[static_cast<size_t>(pair % 3)]) continue;
    fail("{}: key '{}' gives pair {} to the last axis, which is not supported", file.path(), key, pair);
  }
}

}  // namespace tidal
