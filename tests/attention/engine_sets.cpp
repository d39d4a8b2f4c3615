// Reads a layer's cache and queries from a file and writes what the engine selects there:
//   engine_sets BACKEND FROM TO
// FROM: 10 numbers of 32 bits (dtype, heads, kv_heads, head_dim, sketch_bits, budget, max_context, blocks, rows,
// table_stride), then pages [blocks, kv_heads] of 64 rows with their sketch behind them, queries [rows, heads,
// head_dim] of dtype, the block table [rows, table_stride] and contexts [rows] of 32 bits. TO: counts [rows, kv_heads],
// then positions [rows, kv_heads, budget + 63].
#include <array>
#include <cstdio>
#include <exception>
#include <fstream>
#include <vector>

#include "support/engine_attention.h"

namespace {

template <typename T>
std::vector<T> read(std::ifstream& file, size_t count) {
  std::vector<T> values(count);
  file.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(count * sizeof(T)));
  return values;
}

void write(std::ofstream& file, const std::vector<int32_t>& values) {
  file.write(reinterpret_cast<const char*>(values.data()),
             static_cast<std::streamsize>(values.size() * sizeof(int32_t)));
}

int run(char** arguments) {
  std::ifstream from(arguments[2], std::ios::binary);
  from.exceptions(std::ios::failbit | std::ios::badbit);
  const std::vector<int32_t> header = read<int32_t>(from, 10);
  tidal_attention_options options = {};
  options.dtype = header[0];
  options.heads = header[1];
  options.kv_heads = header[2];
  options.head_dim = header[3];
  options.sketch_bits = header[4];
  options.budget = header[5];
  options.max_context = header[6];
  const auto blocks = static_cast<size_t>(header[7]), rows = static_cast<size_t>(header[8]);
  const auto kv_heads = static_cast<size_t>(options.kv_heads);
  const size_t element = tidal::test::element_bytes(options.dtype),
               width = static_cast<size_t>(header[1]) * static_cast<size_t>(header[3]);
  const size_t tile = size_t{128} * static_cast<size_t>(options.head_dim) * element;
  const size_t page = tile + static_cast<size_t>(tidal_attention_sketch_bytes(options.head_dim, options.sketch_bits));
  std::vector<std::byte> pages = read<std::byte>(from, blocks * kv_heads * page);
  const std::vector<std::byte> elements = read<std::byte>(from, rows * width * element);
  std::vector<float> queries(rows * width);
  for (size_t i = 0; i < queries.size(); ++i) queries[i] = tidal::test::element_at(options.dtype, elements.data(), i);
  const auto table = read<int32_t>(from, rows * static_cast<size_t>(header[9]));
  const auto contexts = read<int32_t>(from, rows);
  const tidal_attention_cache cache = {pages.data(), static_cast<int64_t>(page), pages.data() + tile,
                                       static_cast<int64_t>(page), header[7]};
  const auto result = tidal::test::engine_attention(arguments[1], options, cache, queries, table, header[9], contexts);
  std::ofstream to(arguments[3], std::ios::binary);
  to.exceptions(std::ios::failbit | std::ios::badbit);
  write(to, result.counts);
  write(to, result.positions);
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) {
    std::fprintf(stderr, "engine_sets: %d arguments, expected BACKEND FROM TO\n", count - 1);
    return 2;
  }
  try {
    return run(arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "engine_sets: %s\n", error.what());
    return 1;
  }
}
