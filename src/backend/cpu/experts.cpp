#include "backend/cpu/experts.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "backend/cpu/memory.h"
#include "backend/cpu/mlp.h"
#include "backend/cpu/vector_ops.h"

namespace tidal {
namespace {

// Rows of a product: oneDNN makes a kernel for every number of rows, so there should not be too many of them.
constexpr int kRowsStep = 8;

}  // namespace

void ExpertMlp::reserve(const Hyperparameters& hp, int max_rows) {
  experts_ = hp.experts;
  activation_ = hp.activation;
  if (!experts_) return;
  const auto rows = static_cast<size_t>(max_rows), width = static_cast<size_t>(hp.width);
  const size_t choices = rows * experts_.used, ffn = static_cast<size_t>(experts_.ffn);
  const size_t padded = 2 * rows;  // a chunk has more than kShortChunk rows for an expert, or none
  static_assert(kRowsStep <= kShortChunk + 1);
  const size_t element = gemm_.elements().bytes();
  inputs_.reserve(max_rows, hp.width);
  hidden_rows_.reserve(static_cast<int>(choices), experts_.ffn);
  gemm_.reserve(static_cast<int>(padded), std::max(hp.width, experts_.ffn));
  logits_ = allocate_memory(sizeof(float) * rows * experts_.count, "activations");
  hidden_ = allocate_memory(sizeof(float) * 2 * choices * ffn, "activations");
  gathered_ = allocate_memory(element * padded * width, "activations");
  hidden_elements_ = allocate_memory(element * padded * ffn, "activations");
  results_ = allocate_memory(sizeof(float) * std::max(choices, padded) * width, "activations");
  for (auto* list : {&by_dots_, &by_products_, &sorted_}) list->reserve(choices);
  rows_.resize(choices);
  indices_.resize(choices);
  places_.resize(choices);
  std::iota(indices_.begin(), indices_.end(), 0);
  order_.resize(experts_.count);
  counts_.resize(experts_.count + 1);
  groups_.reserve(rows);
  weights_.reserve(4 * experts_.count);
  jobs_.reserve(2 * experts_.count);
}

void ExpertMlp::route(const Layer& layer, std::span<const int> chunks, Rows normed) {
  const int count = experts_.count, used = experts_.used;
  const Rows logits{logits_.as<float>(), normed.rows, count};
  const DotJob job{.weight = &layer.router, .bias = &layer.router_bias, .y = logits};
  dot_matmul({&job, 1}, inputs_, threads_);
  by_dots_.clear();
  by_products_.clear();
  int row = 0;
  for (size_t chunk = 0; chunk < chunks.size(); ++chunk) {
    sorted_.clear();  // the chunk's choices
    std::fill(counts_.begin(), counts_.end(), 0);
    for (int i = 0; i < chunks[chunk]; ++i, ++row) {
      const float* const own = logits.row(row);
      const auto rank = [&](int e) { return std::isnan(own[e]) ? -std::numeric_limits<float>::infinity() : own[e]; };
      std::iota(order_.begin(), order_.end(), 0);
      std::partial_sort(order_.begin(), order_.begin() + used, order_.end(),
                        [&](int a, int b) { return rank(a) != rank(b) ? rank(a) > rank(b) : a < b; });
      const float top = rank(order_.front());
      float sum = 0;
      for (int e = 0; e < (experts_.weights_sum_to_one ? used : count); ++e) sum += std::exp(own[order_[e]] - top);
      for (int e = 0; e < used; ++e) {
        const int expert = order_[e];
        sorted_.push_back({expert, row, static_cast<int32_t>(chunk), std::exp(own[expert] - top) / sum});
        ++counts_[expert];
      }
    }
    for (const Choice& choice : sorted_) {
      (counts_[choice.expert] > kShortChunk ? by_products_ : by_dots_).push_back(choice);
    }
  }
  sort(by_dots_);
  sort(by_products_);
}

void ExpertMlp::sort(std::vector<Choice>& choices) {
  std::fill(counts_.begin(), counts_.end(), 0);
  for (const Choice& choice : choices) ++counts_[choice.expert + 1];
  std::partial_sum(counts_.begin(), counts_.end(), counts_.begin());
  sorted_.resize(choices.size());
  for (const Choice& choice : choices) sorted_[counts_[choice.expert]++] = choice;
  choices.swap(sorted_);
}

template <typename Body>
void ExpertMlp::for_each_expert(const std::vector<Choice>& choices, Body&& body) {
  for (size_t first = 0, end; first < choices.size(); first = end) {
    for (end = first + 1; end < choices.size() && choices[end].expert == choices[first].expert;) ++end;
    body(static_cast<int>(first), Run(choices).subspan(first, end - first));
  }
}

void ExpertMlp::add(const Layer& layer, std::span<const int> chunks, Rows routed, Rows normed, Rows x) {
  inputs_.assign(routed);
  route(layer, chunks, routed);
  if (routed.data != normed.data) inputs_.assign(normed);
  add_by_dots(layer, x);
  add_by_products(layer, normed, x);
}

void ExpertMlp::add_by_dots(const Layer& layer, Rows x) {
  const int count = static_cast<int>(by_dots_.size()), ffn = experts_.ffn, width = x.width;
  if (count == 0) return;
  const Rows gate{hidden_.as<float>(), count, ffn}, up{gate.row(count), count, ffn};
  const Rows results{results_.as<float>(), count, width};
  for (int i = 0; i < count; ++i) rows_[i] = by_dots_[i].row;
  const auto add_job = [&](const Weight& matrix, const Weight& bias, Rows y, std::span<const int32_t> from) {
    weights_.push_back(matrix);  // has room, so that pointers stay
    weights_.push_back(bias);
    jobs_.push_back({.weight = &weights_.end()[-2], .bias = &weights_.back(), .y = y, .rows = from});
  };
  const auto clear = [&] {
    weights_.clear();
    jobs_.clear();
  };
  clear();
  for_each_expert(by_dots_, [&](int first, Run run) {
    const int expert = run.front().expert, rows = static_cast<int>(run.size());
    const std::span<const int32_t> from(rows_.data() + first, run.size());
    add_job(expert_gate_matrix(layer, expert, ffn), expert_bias(layer.gate_biases, expert),
            {gate.row(first), rows, ffn}, from);
    add_job(expert_up_matrix(layer, expert, ffn), expert_bias(layer.up_biases, expert), {up.row(first), rows, ffn},
            from);
  });
  dot_matmul(jobs_, inputs_, threads_);
#pragma omp parallel for schedule(static) num_threads(threads_) if (count > kShortChunk)
  for (int i = 0; i < count; ++i) activate(activation_, gate.row(i), up.row(i), ffn, gate.row(i));
  hidden_rows_.assign(gate);
  clear();
  for_each_expert(by_dots_, [&](int first, Run run) {
    const int expert = run.front().expert;
    add_job(expert_matrix(layer.expert_down, layer.down_scales, expert, width), expert_bias(layer.down_biases, expert),
            {results.row(first), static_cast<int>(run.size()), width}, {indices_.data() + first, run.size()});
  });
  dot_matmul(jobs_, hidden_rows_, threads_);
  // By columns: a row's experts are added in one order, whoever else is there.
  constexpr int kPiece = 256;
  const int pieces = (width + kPiece - 1) / kPiece;
#pragma omp parallel for schedule(static) num_threads(threads_) if (count > kShortChunk)
  for (int piece = 0; piece < pieces; ++piece) {
    const int first = piece * kPiece, columns = std::min(kPiece, width - first);
    for (int i = 0; i < count; ++i) {
      float* const result = results.row(i) + first;
      scale_by(by_dots_[i].weight, columns, result);
      add_to(result, columns, x.row(by_dots_[i].row) + first);
    }
  }
}

void ExpertMlp::add_by_products(const Layer& layer, Rows normed, Rows x) {
  for_each_expert(by_products_, [&](int, Run run) { add_expert_by_products(layer, run, normed, x); });
}

int ExpertMlp::gather(Run run, Rows normed) {
  const auto rounded_up = [](int rows) { return (rows + kRowsStep - 1) / kRowsStep * kRowsStep; };
  int place = 0;
  groups_.clear();
  for (size_t i = 0; i < run.size(); ++i) {
    if (i == 0 || run[i].chunk != run[i - 1].chunk) {
      place = rounded_up(place);
      groups_.push_back(0);
    }
    places_[i] = place++;
    ++groups_.back();
  }
  for (int& group : groups_) group = rounded_up(group);
  const int rows = rounded_up(place);
  const size_t row_bytes = gemm_.elements().bytes() * normed.width;
  auto* const to = gathered_.as<std::byte>();
  std::memset(to, 0, row_bytes * rows);
#pragma omp parallel for schedule(static) num_threads(threads_)
  for (size_t i = 0; i < run.size(); ++i) {
    gemm_.elements().store(normed.row(run[i].row), normed.width, to + row_bytes * places_[i]);
  }
  return rows;
}

void ExpertMlp::add_expert_by_products(const Layer& layer, Run run, Rows normed, Rows x) {
  const GemmElements& elements = gemm_.elements();
  const int expert = run.front().expert, rows = gather(run, normed);
  const auto ffn = static_cast<size_t>(experts_.ffn);
  auto* const hidden = hidden_elements_.as<std::byte>();
  const Weight gate_bias = expert_bias(layer.gate_biases, expert), up_bias = expert_bias(layer.up_biases, expert);
  gemm_.run_pair(expert_gate_matrix(layer, expert, experts_.ffn), expert_up_matrix(layer, expert, experts_.ffn),
                 gathered_.as<std::byte>(), groups_, [&](int first, int count, float* gate, float* up) {
                   for (int r = 0; r < rows; ++r, gate += count, up += count) {
                     if (gate_bias) add_to(gate_bias.floats() + first, count, gate);
                     if (up_bias) add_to(up_bias.floats() + first, count, up);
                     store_hidden(activation_, elements, gate, up, count,
                                  hidden + elements.bytes() * (static_cast<size_t>(r) * ffn + first));
                   }
                 });
  const Rows results{results_.as<float>(), rows, x.width};
  const Weight down = expert_matrix(layer.expert_down, layer.down_scales, expert, x.width);
  const Weight down_bias = expert_bias(layer.down_biases, expert);
  const GemmJob job{&down, &down_bias, results, false};
  gemm_.run({&job, 1}, hidden, groups_);
#pragma omp parallel for schedule(static) num_threads(threads_)
  for (size_t i = 0; i < run.size(); ++i) {
    float* const result = results.row(places_[i]);
    scale_by(run[i].weight, x.width, result);
    add_to(result, x.width, x.row(run[i].row));
  }
}

}  // namespace tidal
