// Attention of layers that see a window of the context, against the reference; and the reference against the attention
// of a sequence that holds nothing but the window.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "parity/bounds.h"

namespace tidal::parity {
namespace {

/// Smaller than a block, a block and its neighbours, more than one piece or span of any kernel.
const std::vector<int> kWindows = {1, 5, 63, 64, 65, 300, 1500};

struct Inputs {
  Inputs(int group, int head_dim, int window, const std::vector<ChunkShape>& chunks, Random& random)
      : hp(attention_shape(group, 2, head_dim)),
        batch(chunks, hp.vocab, random),
        cache(random_cache(hp, batch.blocks(), random)),
        q(random.uniform(static_cast<size_t>(batch->rows()) * hp.q_width(), 3.0f)) {
    hp.windows = {window};
  }

  Hyperparameters hp;
  HostBatch batch;
  HostCache cache;
  std::vector<float> q;
};

std::vector<float> attend(const std::string& backend, const Inputs& in, const Batch& batch, const std::vector<float>& q,
                          int threads = 2) {
  Device device(backend, threads);
  device->reserve(in.hp, in.batch->rows(), in.batch.max_context());
  device->begin(in.hp, batch);
  const Rows out = device.rows(batch.rows(), in.hp.q_width());
  device->attend(batch, 0, device.rows(q, in.hp.q_width()), device.cache(in.cache), {}, out);
  return device.read(out);
}

std::vector<float> attend(const std::string& backend, const Inputs& in, int threads = 2) {
  return attend(backend, in, *in.batch, in.q, threads);
}

/// Contexts around borders of blocks, of the window and of pieces, as rows of their own and in chunks across them.
std::vector<ChunkShape> around(int window) {
  std::vector<ChunkShape> chunks;
  for (const int context : {1, 63, 64, 65, window - 1, window, window + 1, window + 64, 2 * window + 63, 3 * window}) {
    if (context > 0) chunks.push_back({context - 1, 1});
  }
  for (const int rows : {2, 8, 9, 75}) {
    for (const int position : {0, std::max(0, window - rows / 2), window, 2 * window + 1}) {
      chunks.push_back({position, rows});
    }
  }
  return chunks;
}

class WindowParity : public test::BackendTest<std::tuple<std::string, int>> {
 protected:
  const std::string& backend() const { return std::get<0>(GetParam()); }
  int window() const { return std::get<1>(GetParam()); }
  Random random_{static_cast<uint64_t>(window())};
};

TEST_P(WindowParity, Attends) {
  const std::pair<int, int> shapes[] = {{1, 64}, {4, 256}, {7, 48}};
  for (const auto& [group, head_dim] : shapes) {
    const Inputs in(group, head_dim, window(), around(window()), random_);
    expect_close("attend", attend(backend(), in), attend("reference", in),
                 attention_bounds(in.hp, in.batch, in.cache, in.q, true));
  }
}

TEST_P(WindowParity, AttendsAtRandomLengths) {
  std::vector<ChunkShape> chunks;
  for (int i = 0; i < 12; ++i) chunks.push_back({random_.integer(0, 3 * window()), random_.integer(1, 40)});
  const Inputs in(3, 64, window(), chunks, random_);
  expect_close("attend", attend(backend(), in), attend("reference", in),
               attention_bounds(in.hp, in.batch, in.cache, in.q, true));
}

// Whoever is in the batch, and however many threads there are: the same bits. Of short chunks that is true of each row.
TEST_P(WindowParity, CompanyAndThreadsChangeNothing) {
  const Inputs in(4, 64, window(), around(window()), random_);
  const std::vector<float> together = attend(backend(), in);
  EXPECT_EQ(attend(backend(), in, 1), together);
  EXPECT_EQ(attend(backend(), in, 3), together);
  const int width = in.hp.q_width(), decode_rows = make_backend(backend(), 1)->decode_rows();
  for (const Chunk& chunk : in.batch->chunks) {
    const int rows = chunk.rows <= decode_rows ? 1 : chunk.rows;
    for (int first = 0; first < chunk.rows; first += rows) {
      Chunk alone = chunk;
      alone.first_row = 0;
      alone.rows = rows;
      alone.position += first;
      const std::vector<Token> tokens(static_cast<size_t>(rows), 0);
      std::vector<int32_t> positions;
      for (int i = 0; i < rows; ++i) positions.push_back(alone.position + i);
      const auto begin = in.q.begin() + static_cast<ptrdiff_t>(chunk.first_row + first) * width;
      const std::vector<float> q(begin, begin + static_cast<ptrdiff_t>(rows) * width);
      const auto expected = together.begin() + (begin - in.q.begin());
      EXPECT_EQ(attend(backend(), in, {tokens, positions, {&alone, 1}, {}}, q),
                std::vector<float>(expected, expected + static_cast<ptrdiff_t>(q.size())))
          << rows << " rows at position " << alone.position;
    }
  }
}

// What is before the window is not even looked at: numbers that are none there change nothing, in chunks that begin
// behind it.
TEST_P(WindowParity, DoesNotReadWhatIsBeforeIt) {
  const int before = 3 * kBlockTokens;
  std::vector<ChunkShape> chunks;
  for (const int rows : {1, 3, 8, 20}) chunks.push_back({before + window() - 1, rows});
  Inputs in(2, 64, window(), chunks, random_);
  in.batch = HostBatch(chunks, in.hp.vocab, random_, false);
  in.cache = random_cache(in.hp, in.batch.blocks(), random_);
  const std::vector<float> clean = attend(backend(), in);
  for (const Chunk& chunk : in.batch->chunks) {
    for (int p = 0; p < before; ++p) {
      for (int h = 0; h < in.hp.kv_heads; ++h) {
        std::fill_n(in.cache.row(chunk, h, p), 2 * in.hp.head_dim, to_bf16(std::numeric_limits<float>::quiet_NaN()));
      }
    }
  }
  EXPECT_EQ(attend(backend(), in), clean);
}

// A layer without a window over the last positions alone, moved to the beginning, has the same scores and sums.
TEST_P(WindowParity, IsAttentionOverTheLastPositions) {
  const int context = 2 * kBlockTokens + window();
  const Inputs in(2, 64, window(), {{context - 1, 1}}, random_);
  const std::vector<float> windowed = attend(backend(), in);
  Inputs last(2, 64, 0, {{window() - 1, 1}}, random_);
  for (int p = 0; p < window(); ++p) {
    for (int h = 0; h < in.hp.kv_heads; ++h) {
      std::copy_n(in.cache.row(in.batch->chunks[0], h, context - window() + p), 2 * in.hp.head_dim,
                  last.cache.row(last.batch->chunks[0], h, p));
    }
  }
  last.q = in.q;
  last.hp.windows.clear();
  // Cut into other pieces, so the sums differ by their roundings; each lies within its bound of the true value.
  std::vector<double> bounds = attention_bounds(in.hp, in.batch, in.cache, in.q, true);
  for (double& bound : bounds) bound *= 2;
  expect_close("the last positions", windowed, attend(backend(), last), bounds);
}

// A further score of each softmax, with a window and without, of every way that attention goes.
TEST_P(WindowParity, SinksTakeTheirShare) {
  for (const int window : {0, this->window()}) {
    const Inputs in(3, 64, window, around(this->window()), random_);
    // From none at all to most of the mass.
    std::vector<float> sink_logits;
    for (int h = 0; h < in.hp.heads; ++h) sink_logits.push_back(-8.0f + 3.0f * static_cast<float>(h));
    const auto attend_with = [&](const std::string& name) {
      Device device(name);
      device.begin(in.hp, in.batch);
      const Rows out = device.rows(in.batch->rows(), in.hp.q_width());
      const Rows own = device.rows(sink_logits, in.hp.heads);
      const Weight weight{GGML_TYPE_F32, 1, in.hp.heads, reinterpret_cast<const std::byte*>(own.data)};
      device->attend(*in.batch, 0, device.rows(in.q, in.hp.q_width()), device.cache(in.cache), {}, out, weight);
      return device.read(out);
    };
    const std::vector<float> reference = attend_with("reference");
    expect_close("attend", attend_with(backend()), reference,
                 attention_bounds(in.hp, in.batch, in.cache, in.q, true, {}, {}, sink_logits));
    EXPECT_NE(reference, attend("reference", in));
  }
}

TEST_P(WindowParity, SinksTakeTheirShareOfSelectedPositions) {
  const int context = 400 + window();
  Inputs in(3, 64, 0, {{context - 1, 1, true}}, random_);
  const Policy policy{.scope = Scope::Kv, .budget = 96};
  std::vector<int32_t> positions;
  for (int h = 0; h < in.hp.kv_heads; ++h) {
    std::vector<int32_t> all = random_.permutation(context);
    std::sort(all.begin(), all.begin() + policy.budget);
    positions.insert(positions.end(), all.begin(), all.begin() + policy.budget);
  }
  const std::vector<float> sink_logits(static_cast<size_t>(in.hp.heads), 2.0f);
  const auto attend_with = [&](const std::string& name) {
    Device device(name);
    device.begin(in.hp, in.batch);
    const Rows out = device.rows(1, in.hp.q_width()), own = device.rows(sink_logits, in.hp.heads);
    const Weight weight{GGML_TYPE_F32, 1, in.hp.heads, reinterpret_cast<const std::byte*>(own.data)};
    device->attend(*RoleBatch(in.batch, Role::Sparse, policy), 0, device.rows(in.q, in.hp.q_width()),
                   device.cache(in.cache), device.selection(policy, in.hp, 1, positions), out, weight);
    return device.read(out);
  };
  expect_close("attend", attend_with(backend()), attend_with("reference"),
               attention_bounds(in.hp, in.batch, in.cache, in.q, true, policy, positions, sink_logits));
}

INSTANTIATE_TEST_SUITE_P(Windows, WindowParity,
                         testing::Combine(testing::Values("reference", "cpu", "cuda"), testing::ValuesIn(kWindows)),
                         [](const auto& info) {
                           return std::get<0>(info.param) + "_" + std::to_string(std::get<1>(info.param));
                         });

}  // namespace
}  // namespace tidal::parity
