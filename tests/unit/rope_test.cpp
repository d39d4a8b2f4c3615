// Rotary embeddings against ggml's own.
#include "model/rope.h"

#include <ggml-cpu.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>

#include "backend/reference/math.h"
#include "support/random.h"

namespace tidal {
namespace {

using test::Random;

struct Case {
  const char* name;
  Rope::Pairing pairing;
  int head_dim;
  int dims;
  double base;
  bool factors;  // llama3's divisors
  RopeScaling scaling;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

/// The divisors that llama.cpp's converter writes for Llama 3.1: factor 8, low and high frequency factors 1 and 4,
/// original context 8192.
std::vector<float> llama3_divisors(int dims, double base) {
  std::vector<float> divisors;
  for (int i = 0; i < dims / 2; ++i) {
    const double wavelength = 2 * M_PI * std::pow(base, 2.0 * i / dims);
    const double low = 8192.0 / 1.0, high = 8192.0 / 4.0;
    if (wavelength < high) {
      divisors.push_back(1.0f);
    } else if (wavelength > low) {
      divisors.push_back(8.0f);
    } else {
      const double smooth = (8192.0 / wavelength - 1.0) / (4.0 - 1.0);
      divisors.push_back(static_cast<float>(1.0 / ((1 - smooth) / 8.0 + smooth)));
    }
  }
  return divisors;
}

/// ggml_rope_ext of `values` [positions, head_dim].
std::vector<float> ggml_rotated(const Case& c, std::vector<float> values, const std::vector<int32_t>& positions,
                                const std::vector<float>& divisors) {
  const std::unique_ptr<ggml_context, void (*)(ggml_context*)> context(
      ggml_init({.mem_size = size_t{16} << 20, .mem_buffer = nullptr, .no_alloc = false}), ggml_free);
  ggml_context* g = context.get();
  const auto count = static_cast<int64_t>(positions.size());
  ggml_tensor* x = ggml_new_tensor_3d(g, GGML_TYPE_F32, c.head_dim, 1, count);
  ggml_tensor* p = ggml_new_tensor_1d(g, GGML_TYPE_I32, count);
  std::copy(values.begin(), values.end(), static_cast<float*>(x->data));
  std::copy(positions.begin(), positions.end(), static_cast<int32_t*>(p->data));
  ggml_tensor* f = nullptr;
  if (!divisors.empty()) {
    f = ggml_new_tensor_1d(g, GGML_TYPE_F32, static_cast<int64_t>(divisors.size()));
    std::copy(divisors.begin(), divisors.end(), static_cast<float*>(f->data));
  }
  const bool yarn = c.scaling.kind == RopeScaling::Kind::Yarn;
  const int mode = c.pairing == Rope::Pairing::Halves ? GGML_ROPE_TYPE_NEOX : GGML_ROPE_TYPE_NORMAL;
  ggml_tensor* y =
      ggml_rope_ext(g, x, p, f, c.dims, mode, c.scaling.original_context, static_cast<float>(c.base),
                    static_cast<float>(1 / c.scaling.factor), yarn ? static_cast<float>(c.scaling.extrapolation) : 0.0f,
                    static_cast<float>(c.scaling.attention), static_cast<float>(c.scaling.beta_fast),
                    static_cast<float>(c.scaling.beta_slow));
  ggml_cgraph* graph = ggml_new_graph(g);
  ggml_build_forward_expand(graph, y);
  ggml_graph_compute_with_ctx(g, graph, 1);
  const auto* result = static_cast<const float*>(y->data);
  return {result, result + values.size()};
}

class RopeAgainstGgml : public testing::TestWithParam<Case> {};

TEST_P(RopeAgainstGgml, RotatesAlike) {
  const Case& c = GetParam();
  Random random(4);
  const std::vector<int32_t> positions = {0, 1, 2, 63, 64, 1000, 4097, 32768, 65537, 100000};
  const std::vector<float> values = random.uniform(positions.size() * c.head_dim, 2.0f);
  const std::vector<float> divisors = c.factors ? llama3_divisors(c.dims, c.base) : std::vector<float>();
  const Rope rope = make_rope(c.pairing, c.dims, c.base, divisors, c.scaling);
  ASSERT_EQ(rope.frequencies.size(), static_cast<size_t>(c.dims / 2));
  const std::vector<float> theirs = ggml_rotated(c, values, positions, divisors);

  for (size_t r = 0; r < positions.size(); ++r) {
    std::vector<float> head(values.begin() + r * c.head_dim, values.begin() + (r + 1) * c.head_dim);
    const std::vector<float> before = head;
    reference::rotate(head.data(), positions[r], rope);
    for (int i = 0; i < c.head_dim; ++i) {
      const float other = theirs[r * c.head_dim + i];
      if (i >= c.dims) {
        EXPECT_EQ(head[i], before[i]) << "element " << i << " is beyond the rotated ones";
        EXPECT_EQ(other, before[i]);
        continue;
      }
      const bool halves = c.pairing == Rope::Pairing::Halves;
      const int pair = halves ? i % (c.dims / 2) : i / 2;
      const int mate = halves ? (i + c.dims / 2) % c.dims : i ^ 1;
      // ggml multiplies its float32 angle by base^(-2/dims), itself rounded, once per pair, which for `pair` pairs
      // amounts to 2 * pair + 5 roundings of the angle (the last five: scale, divisor, ramp, and the blend's two).
      // YaRN's ramp may subtract two blends of opposite error, hence the larger unscaled angle. Cosine, sine, magnitude
      // and the two products add at most 8 roundings.
      const double angle = positions[r] * std::pow(c.base, -2.0 * pair / c.dims);
      const double error = angle * (2 * pair + 5) * 0x1p-24 + 8 * 0x1p-24;
      const double bound = error * rope.magnitude * (std::abs(before[i]) + std::abs(before[mate]));
      EXPECT_NEAR(head[i], other, bound) << "position " << positions[r] << ", element " << i;
    }
  }
}

constexpr auto kAdjacent = Rope::Pairing::Adjacent;
constexpr auto kHalves = Rope::Pairing::Halves;
const RopeScaling kPlain;
const RopeScaling kLinear{.kind = RopeScaling::Kind::Linear, .factor = 4};
const RopeScaling kYarn{.kind = RopeScaling::Kind::Yarn, .factor = 4, .original_context = 32768};
const RopeScaling kYarnOdd{.kind = RopeScaling::Kind::Yarn,
                           .factor = 8,
                           .original_context = 4096,
                           .beta_fast = 16,
                           .beta_slow = 2,
                           .extrapolation = 0.5,
                           .attention = 1.25};

INSTANTIATE_TEST_SUITE_P(Kinds, RopeAgainstGgml,
                         testing::Values(Case{"PlainAdjacent", kAdjacent, 64, 64, 10000, false, kPlain},
                                         Case{"PlainHalves", kHalves, 64, 64, 1000000, false, kPlain},
                                         Case{"PartialAdjacent", kAdjacent, 80, 32, 10000, false, kPlain},
                                         Case{"PartialHalves", kHalves, 96, 48, 10000, false, kPlain},
                                         Case{"LinearAdjacent", kAdjacent, 128, 128, 10000, false, kLinear},
                                         Case{"LinearHalves", kHalves, 128, 128, 10000, false, kLinear},
                                         Case{"Llama3Adjacent", kAdjacent, 128, 128, 500000, true, kPlain},
                                         Case{"Llama3Halves", kHalves, 64, 64, 500000, true, kPlain},
                                         Case{"YarnAdjacent", kAdjacent, 128, 128, 1000000, false, kYarn},
                                         Case{"YarnHalves", kHalves, 128, 128, 1000000, false, kYarn},
                                         Case{"YarnOddHalves", kHalves, 64, 64, 10000, false, kYarnOdd}),
                         [](const auto& info) { return info.param.name; });

TEST(Rope, MagnitudeFollowsYarn) {
  EXPECT_EQ(make_rope(kHalves, 64, 10000, {}, kPlain).magnitude, 1.0f);
  EXPECT_EQ(make_rope(kHalves, 64, 10000, {}, kLinear).magnitude, 1.0f);
  // arXiv 2309.00071, equation 22: 0.1 ln(factor) + 1.
  EXPECT_FLOAT_EQ(make_rope(kHalves, 64, 10000, {}, kYarn).magnitude, static_cast<float>(0.1 * std::log(4.0) + 1));
  RopeScaling none = kYarn;
  none.extrapolation = 0;  // then ggml interpolates only and leaves the magnitude alone
  EXPECT_EQ(make_rope(kHalves, 64, 10000, {}, none).magnitude, 1.0f);
}

}  // namespace
}  // namespace tidal
