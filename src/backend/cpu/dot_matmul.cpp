#include "backend/cpu/dot_matmul.h"

#include <ggml-cpu.h>

#include <algorithm>

#include "backend/cpu/block_dots.h"
#include "backend/cpu/memory.h"

namespace tidal {
namespace {

ggml_type dot_type(ggml_type weights) { return ggml_get_type_traits_cpu(weights)->vec_dot_type; }

// Weight rows that one thread takes at a time: a few tens of KB, long enough for the hardware prefetcher.
constexpr int kPanel = 32;

}  // namespace

void QuantisedRows::reserve(int rows, int width) {
  max_rows_ = std::max(max_rows_, rows);
  max_width_ = std::max(max_width_, width);
  for (Form& form : forms_) form.data = memory(form.weights);
}

void QuantisedRows::assign(Rows x) {
  x_ = x;
  for (Form& form : forms_) form.ready = false;
}

bool QuantisedRows::shared(ggml_type a, ggml_type b) {
  if (a == b) return true;
  // Block dots fold the weights' offset into the activations.
  return !has_block_dots(a) && !has_block_dots(b) && dot_type(a) == dot_type(b);
}

size_t QuantisedRows::row_bytes(ggml_type weights, int64_t width) {
  if (has_block_dots(weights)) return sizeof(ActivationPair) * static_cast<size_t>(activation_pairs(width));
  return ggml_row_size(dot_type(weights), width);
}

Buffer QuantisedRows::memory(ggml_type weights) const {
  // Rounded up to any type's block of elements: only the rows that use a type need have a fitting width.
  const int64_t width = (int64_t{max_width_} + 255) / 256 * 256;
  return allocate_memory(row_bytes(weights, width) * static_cast<size_t>(max_rows_), "quantised activations");
}

QuantisedRows::Form& QuantisedRows::form(ggml_type weights) {
  for (Form& form : forms_) {
    if (shared(form.weights, weights)) return form;
  }
  // A type's first use ever: later steps find its memory ready.
  return forms_.emplace_back(Form{weights, false, memory(weights)});
}

void QuantisedRows::prepare(ggml_type type, int threads) {
  Form& form = this->form(type);
  if (form.ready) return;
  const size_t bytes = row_bytes(type, x_.width);
#pragma omp parallel for schedule(static) num_threads(threads) if (x_.rows > kShortChunk)
  for (int r = 0; r < x_.rows; ++r) {
    std::byte* to = form.data.as<std::byte>() + static_cast<size_t>(r) * bytes;
    if (has_block_dots(type)) {
      quantise_for_block_dots(type, x_.row(r), x_.width, reinterpret_cast<ActivationPair*>(to));
    } else {
      ggml_get_type_traits_cpu(dot_type(type))->from_float(x_.row(r), to, x_.width);
    }
  }
  form.ready = true;
}

const std::byte* QuantisedRows::row(ggml_type type, int index) const {
  for (const Form& form : forms_) {
    if (shared(form.weights, type)) {
      return form.data.as<std::byte>() + static_cast<size_t>(index) * row_bytes(type, x_.width);
    }
  }
  return nullptr;
}

namespace {

/// Results of up to kPanel weight rows with a few rows of activations: [rows][kPanel].
void panel_by_blocks(const Weight& weight, int64_t first, int count, const std::byte* const* x, int rows,
                     float* results) {
  const ActivationPair* activations[kMaxBlockDotRows];
  for (int r = 0; r < rows; ++r) activations[r] = reinterpret_cast<const ActivationPair*>(x[r]);
  block_dots(weight, first, count, activations, rows, results, kPanel);
}

void panel_by_ggml(const Weight& weight, int64_t first, int count, const std::byte* const* x, int rows,
                   float* results) {
  const auto dot = ggml_get_type_traits_cpu(weight.type)->vec_dot;
  const size_t bytes = weight.row_bytes();
  const std::byte* weights = weight.row(first);
  for (int o = 0; o < count; ++o, weights += bytes) {
    for (int r = 0; r < rows; ++r) {
      dot(static_cast<int>(weight.cols), results + r * kPanel + o, 0, weights, 0, x[r], 0, 1);
    }
  }
}

int panels_of(const DotJob& job) { return static_cast<int>((job.weight->rows + kPanel - 1) / kPanel); }

}  // namespace

void dot_matmul(std::span<const DotJob> jobs, QuantisedRows& x, int threads) {
  int panels = 0;
  for (const DotJob& job : jobs) {
    x.prepare(job.weight->type, threads);
    panels += panels_of(job);
  }
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int panel = 0; panel < panels; ++panel) {
    const DotJob* job = jobs.data();
    int first = panel;
    for (; first >= panels_of(*job); ++job) first -= panels_of(*job);
    const Weight& weight = *job->weight;
    const float* bias = job->bias && *job->bias ? job->bias->floats() : nullptr;
    const int64_t begin = int64_t{first} * kPanel;
    const int count = static_cast<int>(std::min<int64_t>(kPanel, weight.rows - begin));
    const int all = job->rows.empty() ? x.rows() : static_cast<int>(job->rows.size());
    for (int row = 0; row < all; row += kMaxBlockDotRows) {
      const int rows = std::min(kMaxBlockDotRows, all - row);
      const std::byte* activations[kMaxBlockDotRows];
      for (int r = 0; r < rows; ++r) {
        activations[r] = x.row(weight.type, job->rows.empty() ? row + r : job->rows[row + r]);
      }
      float results[kMaxBlockDotRows * kPanel];
      (has_block_dots(weight.type) ? panel_by_blocks : panel_by_ggml)(weight, begin, count, activations, rows, results);
      for (int r = 0; r < rows; ++r) {
        float* y = job->y.row(row + r) + begin;
        for (int o = 0; o < count; ++o) {
          const float value = results[r * kPanel + o] * weight.scale + (bias ? bias[begin + o] : 0.0f);
          y[o] = job->add ? y[o] + value : value;
        }
      }
    }
  }
}

}  // namespace tidal
