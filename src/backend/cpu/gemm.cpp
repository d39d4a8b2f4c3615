#include "backend/cpu/gemm.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <dnnl.hpp>
#include <exception>
#include <unordered_map>

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
    w.results = allocate_memory(sizeof(float) * kMaxWeights * kPanel * static_cast<size_t>(max_rows_), "products");
  }
}

void Gemm::run(std::span<const Weight* const> weights, const std::byte* x, int rows, const Use& use) {
  const int columns = static_cast<int>(weights[0]->rows);
  const int width = static_cast<int>(weights[0]->cols);
  const int panels = (columns + kPanel - 1) / kPanel;
  const auto to_float = [](const Weight& weight, int64_t row, float* to) {
    if (weight.type == GGML_TYPE_F32) return void(std::memcpy(to, weight.row(row), sizeof(float) * weight.cols));
    ggml_get_type_traits(weight.type)->to_float(weight.row(row), to, weight.cols);
  };
  std::exception_ptr error;
#pragma omp parallel for schedule(dynamic) num_threads(threads_)
  for (int panel = 0; panel < panels; ++panel) {
    try {
      const int thread = omp_get_thread_num();
      Workspace& work = workspaces_[thread];
      const int first = panel * kPanel;
      const int count = std::min(kPanel, columns - first);
      const float* results[kMaxWeights];
      for (size_t w = 0; w < weights.size(); ++w) {
        for (int o = 0; o < count; ++o) {
          to_float(*weights[w], first + o, work.row.as<float>());
          elements_.store(work.row.as<float>(), width, work.panel.as<std::byte>() + elements_.bytes() * o * width);
        }
        float* result = work.results.as<float>() + w * kPanel * static_cast<size_t>(max_rows_);
        kernels_[thread]->rows_by_rows(rows, count, width, x, work.panel.as<std::byte>(), result, kPanel);
        results[w] = result;
      }
      use(first, count, {results, weights.size()});
    } catch (...) {
#pragma omp critical
      error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace tidal
