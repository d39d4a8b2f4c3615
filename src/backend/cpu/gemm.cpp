#include "backend/cpu/gemm.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <dnnl.hpp>
#include <exception>
#include <numeric>
#include <unordered_map>

#include "backend/cpu/dequantise_bf16.h"
#include "backend/cpu/memory.h"
#include "backend/cpu/vector_ops.h"

namespace tidal {

GemmElements::GemmElements() {
  const auto isa = static_cast<unsigned>(dnnl::get_effective_cpu_isa());
  const auto bf16 = static_cast<unsigned>(dnnl::cpu_isa::avx512_core_bf16);
  // oneDNN's instruction sets are nested bit sets.
  bf16_ = (isa & bf16) == bf16;
}

void GemmElements::store(const float* from, int count, std::byte* to) const {
  if (bf16_) {
    floats_to_bf16(from, count, reinterpret_cast<Bf16*>(to));
  } else {
    std::memcpy(to, from, sizeof(float) * count);
  }
}

void GemmElements::dequantise(const Weight& weight, int64_t row, float* scratch, std::byte* to) const {
  const std::byte* from = weight.row(row);
  if (bf16_ && dequantise_to_bf16(weight.type, from, weight.cols, reinterpret_cast<Bf16*>(to))) return;
  if (weight.type == GGML_TYPE_F32)
    return store(reinterpret_cast<const float*>(from), static_cast<int>(weight.cols), to);
  ggml_get_type_traits(weight.type)->to_float(from, scratch, weight.cols);
  store(scratch, static_cast<int>(weight.cols), to);
}

struct GemmKernel::Library {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
};

struct GemmKernel::Primitive {
  dnnl::matmul matmul;
  dnnl::memory a, b, c;
  std::unordered_map<int, dnnl::memory> arguments;
};

GemmKernel::GemmKernel(const GemmElements& elements) : elements_(elements), library_(std::make_unique<Library>()) {}
GemmKernel::~GemmKernel() = default;

GemmKernel::Primitive& GemmKernel::primitive(Kind kind, int m, int n, int k, int stride) {
  auto& entry = primitives_[{kind, m, n, k, stride}];
  if (entry) return *entry;
  using dnnl::memory;
  const auto type = elements_.bf16() ? memory::data_type::bf16 : memory::data_type::f32;
  const bool by_rows = kind == Kind::RowsByRows;
  const memory::desc a({m, k}, type, memory::dims{by_rows ? k : stride, 1});
  const memory::desc b({k, n}, type, by_rows ? memory::dims{1, k} : memory::dims{n, 1});
  const memory::desc c({m, n}, memory::data_type::f32, memory::dims{by_rows ? stride : n, 1});
  dnnl::primitive_attr attributes;
  if (!by_rows) {
    dnnl::post_ops add;
    add.append_sum(1.0f);
    attributes.set_post_ops(add);
  }
  auto made = std::make_unique<Primitive>();
#if DNNL_VERSION_MAJOR >= 3
  made->matmul = dnnl::matmul(dnnl::matmul::primitive_desc(library_->engine, a, b, c, attributes));
#else
  made->matmul = dnnl::matmul(dnnl::matmul::primitive_desc(dnnl::matmul::desc(a, b, c), attributes, library_->engine));
#endif
  made->a = memory(a, library_->engine, nullptr);
  made->b = memory(b, library_->engine, nullptr);
  made->c = memory(c, library_->engine, nullptr);
  made->arguments = {{DNNL_ARG_SRC, made->a}, {DNNL_ARG_WEIGHTS, made->b}, {DNNL_ARG_DST, made->c}};
  entry = std::move(made);
  return *entry;
}

void GemmKernel::rows_by_rows(int m, int n, int k, const std::byte* a, const std::byte* b, float* c, int c_stride) {
  Primitive& p = primitive(Kind::RowsByRows, m, n, k, c_stride);
  p.a.set_data_handle(const_cast<std::byte*>(a));
  p.b.set_data_handle(const_cast<std::byte*>(b));
  p.c.set_data_handle(c);
  p.matmul.execute(library_->stream, p.arguments);
}

void GemmKernel::accumulate(int m, int n, int k, const std::byte* a, int a_stride, const std::byte* b, float* c) {
  Primitive& p = primitive(Kind::Accumulate, m, n, k, a_stride);
  p.a.set_data_handle(const_cast<std::byte*>(a));
  p.b.set_data_handle(const_cast<std::byte*>(b));
  p.c.set_data_handle(c);
  p.matmul.execute(library_->stream, p.arguments);
}

Gemm::Gemm(int threads) : threads_(threads), workspaces_(threads) {
  for (int t = 0; t < threads; ++t) kernels_.push_back(std::make_unique<GemmKernel>(elements_));
}

void Gemm::reserve(int rows, int width) {
  if (rows <= max_rows_ && width <= max_width_) return;
  max_rows_ = std::max(max_rows_, rows);
  max_width_ = std::max(max_width_, width);
  for (Workspace& w : workspaces_) {
    w.panel = allocate_memory(elements_.bytes() * kPanel * max_width_, "a panel of weights");
    w.row = allocate_memory(sizeof(float) * max_width_, "a row of weights");
    for (Buffer& results : w.results) {
      results = allocate_memory(sizeof(float) * kPanel * static_cast<size_t>(max_rows_), "products");
    }
  }
}

std::byte* Gemm::scratch(size_t bytes) {
  Buffer& buffer = workspaces_[omp_get_thread_num()].scratch;
  if (buffer.bytes() < bytes) buffer = allocate_memory(bytes, "a tile of attention");
  return buffer.as<std::byte>();
}

int Gemm::panel_columns(int64_t columns) {
  // Some panels per thread, so that none waits long for the others' last one. The number of threads has no say: sums
  // must not depend on it.
  return static_cast<int>(std::clamp<int64_t>(columns / 16 / 32 * 32, 32, kPanel));
}

void Gemm::for_each_panel(int panels, const std::function<void(int panel)>& body) {
  std::exception_ptr error;
#pragma omp parallel for schedule(dynamic) num_threads(threads_)
  for (int panel = 0; panel < panels; ++panel) {
    try {
      body(panel);
    } catch (...) {
#pragma omp critical
      error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

float* Gemm::panel_product(const Weight& weight, int first, int count, const std::byte* x, std::span<const int> groups,
                           int result) {
  const int thread = omp_get_thread_num();
  Workspace& work = workspaces_[thread];
  auto* panel = work.panel.as<std::byte>();
  const size_t row_bytes = elements_.bytes() * weight.cols;
  for (int o = 0; o < count; ++o) elements_.dequantise(weight, first + o, work.row.as<float>(), panel + row_bytes * o);
  auto* to = work.results[result].as<float>();
  const int rows = std::accumulate(groups.begin(), groups.end(), 0), cols = static_cast<int>(weight.cols);
  // Of whole pairs of vectors of results a row gets the same bits from oneDNN however many rows there are; of one
  // vector, as behind the last whole panel of 240 columns, it does not.
  constexpr int kColumns = 32;
  if (elements_.bf16() && count % kColumns == 0) {
    kernels_[thread]->rows_by_rows(rows, count, cols, x, panel, to, count);
  } else {
    for (int64_t row = 0; const int group : groups) {
      kernels_[thread]->rows_by_rows(group, count, cols, x + row_bytes * row, panel, to + row * count, count);
      row += group;
    }
  }
  if (weight.scale != 1) {
    for (int64_t i = 0; i < int64_t{rows} * count; ++i) to[i] *= weight.scale;
  }
  return to;
}

void Gemm::run(std::span<const GemmJob> jobs, const std::byte* x, std::span<const int> groups) {
  const auto panels_of = [](const GemmJob& job) {
    const int columns = panel_columns(job.weight->rows);
    return static_cast<int>((job.weight->rows + columns - 1) / columns);
  };
  int panels = 0;
  for (const GemmJob& job : jobs) panels += panels_of(job);
  for_each_panel(panels, [&](int panel) {
    const GemmJob* job = jobs.data();
    for (; panel >= panels_of(*job); ++job) panel -= panels_of(*job);
    const int columns = panel_columns(job->weight->rows);
    const int first = panel * columns;
    const int count = static_cast<int>(std::min<int64_t>(columns, job->weight->rows - first));
    const float* from = panel_product(*job->weight, first, count, x, groups, 0);
    for (int r = 0; r < job->y.rows; ++r, from += count) {
      float* to = job->y.row(r) + first;
      if (job->add) {
        add_to(from, count, to);
      } else {
        std::copy_n(from, count, to);
      }
      if (job->bias && *job->bias) add_to(job->bias->floats() + first, count, to);
    }
  });
}

void Gemm::run_pair(const Weight& a, const Weight& b, const std::byte* x, std::span<const int> groups,
                    const UsePair& use) {
  const int columns = panel_columns(a.rows);
  const int panels = static_cast<int>((a.rows + columns - 1) / columns);
  for_each_panel(panels, [&](int panel) {
    const int first = panel * columns;
    const int count = static_cast<int>(std::min<int64_t>(columns, a.rows - first));
    float* of_a = panel_product(a, first, count, x, groups, 0);
    float* of_b = panel_product(b, first, count, x, groups, 1);
    use(first, count, of_a, of_b);
  });
}

}  // namespace tidal
