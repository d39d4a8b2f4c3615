#include "backend/cpu/dot_matmul.h"

#include <ggml-cpu.h>

#include <algorithm>

namespace tidal {
namespace {

ggml_type dot_type(ggml_type weights) { return ggml_get_type_traits_cpu(weights)->vec_dot_type; }

// Weight rows that one thread takes at a time: a few tens of KB, long enough for the hardware prefetcher.
constexpr int kPanel = 32;

}  // namespace

void QuantisedRows::reserve(int rows, int width) {
  max_rows_ = std::max(max_rows_, rows);
  max_width_ = std::max(max_width_, width);
  for (Form& form : forms_) form.data.resize(row_capacity(form.type) * max_rows_);
}

void QuantisedRows::assign(Rows x) {
  x_ = x;
  for (Form& form : forms_) form.ready = false;
}

QuantisedRows::Form& QuantisedRows::form(ggml_type type) {
  for (Form& form : forms_) {
    if (form.type == type) return form;
  }
  // A type's first use ever: later steps find its memory ready.
  return forms_.emplace_back(Form{type, false, std::vector<std::byte>(row_capacity(type) * max_rows_)});
}

// Rounded up to any type's block of elements: only the rows that use a type need have a fitting width.
size_t QuantisedRows::row_capacity(ggml_type type) const {
  return ggml_row_size(type, (int64_t{max_width_} + 255) / 256 * 256);
}

void QuantisedRows::prepare(ggml_type type) {
  Form& form = this->form(dot_type(type));
  if (form.ready) return;
  const size_t row_bytes = ggml_row_size(form.type, x_.width);
  const auto quantise = ggml_get_type_traits_cpu(form.type)->from_float;
  for (int r = 0; r < x_.rows; ++r) quantise(x_.row(r), form.data.data() + r * row_bytes, x_.width);
  form.ready = true;
}

const std::byte* QuantisedRows::row(ggml_type type, int index) const {
  const ggml_type wanted = dot_type(type);
  for (const Form& form : forms_) {
    if (form.type == wanted) return form.data.data() + index * ggml_row_size(wanted, x_.width);
  }
  return nullptr;
}

void dot_matmul(std::span<const DotJob> jobs, QuantisedRows& x, int threads) {
  int panels = 0;
  for (const DotJob& job : jobs) {
    x.prepare(job.weight->type);
    panels += static_cast<int>((job.weight->rows + kPanel - 1) / kPanel);
  }
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int panel = 0; panel < panels; ++panel) {
    const DotJob* job = jobs.data();
    int first = panel;
    for (; first >= (job->weight->rows + kPanel - 1) / kPanel; ++job) {
      first -= static_cast<int>((job->weight->rows + kPanel - 1) / kPanel);
    }
    const Weight& weight = *job->weight;
    const auto dot = ggml_get_type_traits_cpu(weight.type)->vec_dot;
    const float* bias = job->bias && *job->bias ? job->bias->floats() : nullptr;
    const int64_t begin = int64_t{first} * kPanel;
    const int64_t end = std::min(begin + kPanel, weight.rows);
    const int width = static_cast<int>(weight.cols);
    for (int64_t o = begin; o < end; ++o) {
      for (int r = 0; r < x.rows(); ++r) {
        float value = 0;
        dot(width, &value, 0, weight.row(o), 0, x.row(weight.type, r), 0, 1);
        if (bias) value += bias[o];
        float& y = job->y.row(r)[o];
        y = job->add ? y + value : value;
      }
    }
  }
}

}  // namespace tidal
