#include "golden/float_copy.h"

#include <ggml.h>
#include <gguf.h>

#include <memory>
#include <stdexcept>
#include <vector>

namespace tidal::golden {

void write_float_copy(const std::string& path, const std::string& to) {
  ggml_context* tensors = nullptr;
  const std::unique_ptr<gguf_context, decltype(&gguf_free)> from(
      gguf_init_from_file(path.c_str(), {.no_alloc = false, .ctx = &tensors}), gguf_free);
  if (!from) throw std::runtime_error(path + ": cannot be read");
  const std::unique_ptr<ggml_context, decltype(&ggml_free)> owner(tensors, ggml_free);

  const std::unique_ptr<gguf_context, decltype(&gguf_free)> copy(gguf_init_empty(), gguf_free);
  gguf_set_kv(copy.get(), from.get());
  std::vector<std::vector<ggml_fp16_t>> halves;
  std::vector<float> row;
  for (int64_t i = 0; i < gguf_get_n_tensors(from.get()); ++i) {
    const char* name = gguf_get_tensor_name(from.get(), i);
    const ggml_tensor* tensor = ggml_get_tensor(tensors, name);
    gguf_add_tensor(copy.get(), tensor);
    if (tensor->type == GGML_TYPE_F32) {
      gguf_set_tensor_data(copy.get(), name, tensor->data);
      continue;
    }
    std::vector<ggml_fp16_t>& half = halves.emplace_back(static_cast<size_t>(ggml_nelements(tensor)));
    row.resize(static_cast<size_t>(tensor->ne[0]));
    for (int64_t r = 0; r < ggml_nrows(tensor); ++r) {
      const char* data = static_cast<const char*>(tensor->data) + static_cast<size_t>(r) * tensor->nb[1];
      ggml_get_type_traits(tensor->type)->to_float(data, row.data(), tensor->ne[0]);
      ggml_fp32_to_fp16_row(row.data(), half.data() + r * tensor->ne[0], tensor->ne[0]);
    }
    gguf_set_tensor_type(copy.get(), name, GGML_TYPE_F16);
    gguf_set_tensor_data(copy.get(), name, half.data());
  }
  if (!gguf_write_to_file(copy.get(), to.c_str(), false)) throw std::runtime_error(to + ": cannot be written");
}

}  // namespace tidal::golden
