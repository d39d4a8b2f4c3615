#include "backend/cuda/full_below.h"

#include <algorithm>
#include <cstdint>

#include "backend/backend.h"

namespace tidal::cuda {
namespace {

// What a layer of a decode step of one sequence takes beside a Dense layer, in microseconds: a Scan layer has a
// launch more and chooses, a Dense layer reads more. Chosen so that no crossing is earlier than measured, and the
// sum of the squares of what is later (in logarithms) is least, of 12 shapes of 2 to 32 KV heads at 4,096 to 98,304
// positions, one NVIDIA H200 (read stream 4.6 TB/s), 2026-11-30, by
//   tidal bench --shape NAME --type bf16 -p 0 -n 48 -r 3 -d DEPTHS --fill random --attention full,sketch
// (docs/performance_cuda.md). Devices whose memory is slower cross earlier, since launches cost them the same: there
// full attention goes on for longer than it need.
constexpr double kBytes = 4.3e6;         // of K/V that a Dense layer reads in a microsecond
constexpr double kBytesQ8 = 3.36e6;      // the same of 8 bits: of llama-3-8b alone, from 32,768 to 102,400 positions
constexpr double kDense = .0425e-3;      // a position, beside its bytes
constexpr double kScan = 1.5;            // a launch and the choice
constexpr double kScanChannel = .0086;   // the same, an element of a head
constexpr double kScanHead = .09;        // the same, a query head
constexpr double kScanElement = .00172;  // the same, an element of all query heads
constexpr double kScored = .041e-3;      // a position's sketch of a KV head
constexpr double kSparse = -2;           // a Sparse layer, whose selection is there when it begins
constexpr double kSelected = .9e-3;      // a selected position, beside its bytes
constexpr int kBudget = 256;             // of all measurements above

/// Microseconds in which a layer reads K and V of a position.
double row_time(const Hyperparameters& hp, int readers, KvType type) {
  const auto bytes = static_cast<double>(KvRowLayout{type, hp.head_dim}.bytes());
  return bytes * readers / (type == KvType::Q8 ? kBytesQ8 : kBytes);
}

/// Microseconds that a step of these roles takes more than full attention.
double extra(const Hyperparameters& hp, std::span<const Role> roles, const Policy& policy, KvType type, int context) {
  const auto scans = static_cast<double>(std::count(roles.begin(), roles.end(), Role::Scan));
  const auto reuses = static_cast<double>(std::count(roles.begin(), roles.end(), Role::Sparse));
  const auto selected = [&](int positions, int readers) {
    return positions * (kSelected + row_time(hp, readers, type));
  };
  const int readers = policy.scope == Scope::Head ? hp.heads : hp.kv_heads;
  const double more = selected(policy.at(context).budget, readers) - selected(kBudget, hp.kv_heads);
  const double dense = context * (kDense + row_time(hp, hp.kv_heads, type));
  const double chooses = kScan + kScanChannel * hp.head_dim + (kScanHead + kScanElement * hp.head_dim) * hp.heads;
  const double scan = chooses + context * kScored * hp.kv_heads;
  return scans * scan + reuses * kSparse + (scans + reuses) * (more - dense);
}

}  // namespace

int full_below(const Hyperparameters& hp, std::span<const Role> roles, const Policy& policy, KvType type) {
  if (std::none_of(roles.begin(), roles.end(), reads_selected)) return 0;
  const auto slower = [&](int context) { return extra(hp, roles, policy, type, context) > 0; };
  // With a budget that is a large share of the context it never pays; else it pays from one length on.
  if (slower(kAlwaysFull)) return kAlwaysFull;
  int below = 0, from = kAlwaysFull;
  while (from - below > 1) {
    const int middle = below + (from - below) / 2;
    (slower(middle) ? below : from) = middle;
  }
  return from > 1 ? from : 0;
}

}  // namespace tidal::cuda
