// Products with matrices that stay quantised on the device: every type, odd sizes, any number of rows.
#include <gtest/gtest.h>

#include <map>

#include "model/rope.h"
#include "parity/bounds.h"

namespace tidal::parity {
namespace {

struct Size {
  int rows, cols;  // of the matrix
};

class QuantisedProduct : public test::BackendTest<std::tuple<std::string, ggml_type>> {
 protected:
  ggml_type type() const { return std::get<1>(GetParam()); }

  /// x += W out of so many chunks of one row each.
  std::vector<float> project(const HostWeight& w, const std::vector<float>& out, const std::vector<float>& x,
                             int rows) {
    const auto width = static_cast<int>(w.view.rows), cols = static_cast<int>(w.view.cols);
    Hyperparameters hp = attention_shape(1, cols / 32, 32);
    hp.width = width;
    const HostBatch batch(std::vector<ChunkShape>(rows, ChunkShape{3, 1}), 100, random_);
    Device device(std::get<0>(GetParam()));
    device.begin(hp, batch);
    const Rows to = device.rows(x, width);
    Layer layer;
    layer.wo = device.weight(w);
    device->project(layer, device.rows(out, cols), to);
    return device.read(to);
  }

  Random random_{static_cast<uint64_t>(type()) + 77};
};

TEST_P(QuantisedProduct, AnyRowsOfAnySize) {
  const int block = static_cast<int>(ggml_blck_size(type()));
  const std::vector<Size> sizes = block == 32
                                      ? std::vector<Size>{{24, 32}, {330, 160}, {136, 1056}, {40, 4896}, {24, 16384}}
                                      : std::vector<Size>{{24, 256}, {330, 768}, {136, 1792}, {40, 4864}, {24, 16384}};
  for (const auto [w_rows, cols] : sizes) {
    const HostWeight w = random_weight(type(), w_rows, cols, random_);
    std::vector<float> all(static_cast<size_t>(33) * cols), x(static_cast<size_t>(33) * w_rows);
    for (float& value : all) value = random_.normal(1.0f);
    for (float& value : x) value = random_.normal(1.0f);
    std::map<int, std::vector<float>> alone;
    for (const int rows : {1, 2, 5, 8, 9, 16, 17, 33}) {
      const std::vector<float> out(all.begin(), all.begin() + static_cast<size_t>(rows) * cols);
      const std::vector<float> before(x.begin(), x.begin() + static_cast<size_t>(rows) * w_rows);
      const std::vector<float> got = project(w, out, before, rows);
      std::vector<float> expected;
      std::vector<double> bounds;
      for (int r = 0; r < rows; ++r) {
        const std::span<const float> row(out.data() + static_cast<size_t>(r) * cols, cols);
        const std::vector<float> added = product(w, {}, row);
        const std::vector<double> own = product_bounds(w, row, rounding_of(std::get<0>(GetParam()), 1, type()));
        for (int i = 0; i < w_rows; ++i) {
          const float base = before[static_cast<size_t>(r) * w_rows + i];
          expected.push_back(base + added[i]);
          bounds.push_back(own[i] + 4 * 0x1p-24 * (std::abs(base) + std::abs(added[i])));
        }
      }
      SCOPED_TRACE(testing::Message() << w_rows << " x " << cols << ", " << rows << " rows");
      expect_close("x", got, expected, bounds);
      // The same bits in any company.
      for (const int r : {0, 7, 8, 15, 16, 32}) {
        if (r >= rows) break;
        std::vector<float>& own = alone[r];
        const auto row = [&](const std::vector<float>& values, int width) {
          return std::vector<float>(values.begin() + static_cast<size_t>(r) * width,
                                    values.begin() + static_cast<size_t>(r + 1) * width);
        };
        if (own.empty()) own = project(w, row(all, cols), row(x, w_rows), 1);
        ASSERT_EQ(row(got, w_rows), own) << "row " << r << " depends on its company";
      }
    }
  }
}

/// More tiles of 16 rows than two a multiprocessor, an odd number, so that blocks have several; x whole in shared
/// memory and in a ring.
TEST_P(QuantisedProduct, ManyTilesGiveTheSameBitsInAnyCompany) {
  std::vector<Size> sizes{{4330, 1280}};
  if (type() == GGML_TYPE_Q4_0) {
    sizes.push_back({4330, 288});   // fewer units than warps
    sizes.push_back({4330, 4896});  // a ring
  }
  for (const auto [w_rows, cols] : sizes) {
    const HostWeight w = random_weight(type(), w_rows, cols, random_);
    std::vector<float> out(static_cast<size_t>(16) * cols), x(static_cast<size_t>(16) * w_rows);
    for (float& value : out) value = random_.normal(1.0f);
    for (float& value : x) value = random_.normal(1.0f);
    std::vector<float> alone;
    for (int r = 0; r < 16; ++r) {
      const auto from = out.begin() + static_cast<ptrdiff_t>(r) * cols;
      const auto before = x.begin() + static_cast<ptrdiff_t>(r) * w_rows;
      const std::vector<float> own = project(w, {from, from + cols}, {before, before + w_rows}, 1);
      alone.insert(alone.end(), own.begin(), own.end());
    }
    for (const int rows : {2, 3, 8, 13, 16}) {
      const auto end = static_cast<ptrdiff_t>(rows) * w_rows;
      const std::vector<float> got = project(w, {out.begin(), out.begin() + static_cast<ptrdiff_t>(rows) * cols},
                                             {x.begin(), x.begin() + end}, rows);
      EXPECT_EQ(got, std::vector<float>(alone.begin(), alone.begin() + end))
          << w_rows << " x " << cols << ", " << rows << " rows";
    }
  }
}

/// Rows that lie whole in shared memory and such that do not.
TEST_P(QuantisedProduct, SmallDevicesGiveTheSameBits) {
  const int odd = ggml_blck_size(type()) == 32 ? 160 : 768;
  for (const auto [w_rows, cols] : std::vector<Size>{{330, odd}, {136, 4096}, {24, 14336}, {24, 24576}}) {
    const HostWeight w = random_weight(type(), w_rows, cols, random_);
    std::vector<float> out(static_cast<size_t>(33) * cols), x(static_cast<size_t>(33) * w_rows);
    for (float& value : out) value = random_.normal(1.0f);
    for (float& value : x) value = random_.normal(1.0f);
    for (const int rows : {1, 2, 8, 9, 16, 17, 33}) {
      const std::vector<float> from(out.begin(), out.begin() + static_cast<ptrdiff_t>(rows) * cols);
      const std::vector<float> before(x.begin(), x.begin() + static_cast<ptrdiff_t>(rows) * w_rows);
      const std::vector<float> large = project(w, from, before, rows);
      const test::SmallDevice small;
      EXPECT_EQ(project(w, from, before, rows), large) << w_rows << " x " << cols << ", " << rows << " rows";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, QuantisedProduct,
                         testing::Combine(testing::Values("cuda"), testing::ValuesIn(kKeptTypes)),
                         [](const auto& info) { return std::string(ggml_type_name(std::get<1>(info.param))); });

}  // namespace
}  // namespace tidal::parity
