#include "model/tensors.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace tidal {
namespace {

std::string joined(const std::vector<std::string>& items) {
  constexpr size_t kShown = 60;  // more would fill the screen
  std::string list;
  for (size_t i = 0; i < std::min(items.size(), kShown); ++i) list += (i == 0 ? "" : ", ") + items[i];
  if (items.size() > kShown) list += fmt::format(" and {} more", items.size() - kShown);
  return list;
}

}  // namespace

int64_t Tensors::rows(const std::string& name) const {
  const auto found = file_.tensors().find(name);
  return found == file_.tensors().end() ? 0 : found->second.rows;
}

bool Tensors::has_any(const std::string& prefix) {
  const auto next = file_.tensors().lower_bound(prefix);
  const bool found = next != file_.tensors().end() && next->first.starts_with(prefix);
  if (!found) missing_.push_back(prefix + "*");
  return found;
}

Weight Tensors::table(const std::string& name, int64_t rows, int64_t cols) {
  return find(name + ".weight", rows, cols, true, false);
}

Weight Tensors::gather(const Weight& matrix, int64_t rows, const std::vector<Stretch>& stretches) {
  if (!matrix || matrix.rows != rows) return {};
  Weight gathered = matrix;
  gathered.rows = 0;
  std::vector<std::byte>& copy = copies_->emplace_back();
  for (const Stretch& stretch : stretches) {
    copy.insert(copy.end(), matrix.row(stretch.first), matrix.row(stretch.first + stretch.count));
    gathered.rows += stretch.count;
  }
  gathered.data = copy.data();
  return gathered;
}

void Tensors::leave_out_all(const std::string& prefix) {
  const auto& all = file_.tensors();
  for (auto next = all.lower_bound(prefix); next != all.end() && next->first.starts_with(prefix); ++next) {
    used_.insert(next->first);
  }
}

Weight Tensors::scaled(const std::string& name, int64_t rows, int64_t cols, bool required) {
  Weight weight = find(name + ".weight", rows, cols, required, false);
  if (!weight) return weight;
  if (const Weight scale = optional_vector(name + ".scale", 1); scale && scale.cols == 1) {
    weight.scale = scale.floats()[0];
    if (!std::isfinite(weight.scale)) {
      wrong_.push_back(fmt::format("{}.scale is {}, expected a finite number", name, weight.scale));
    }
  }
  // For activations in 4 bits, which neither libllama nor any backend here makes.
  leave_out(name + ".input_scale");
  return weight;
}

Weight Tensors::find(const std::string& name, int64_t rows, int64_t cols, bool required, bool vector) {
  const auto found = file_.tensors().find(name);
  if (found == file_.tensors().end()) {
    if (required) missing_.push_back(name);
    return {};
  }
  used_.insert(name);
  const Weight& weight = found->second;
  if (weight.rows != rows || weight.cols != cols) {
    wrong_.push_back(fmt::format("{} is [{}, {}], expected [{}, {}]", name, weight.rows, weight.cols, rows, cols));
  } else if (vector && weight.type != GGML_TYPE_F32) {
    wrong_.push_back(fmt::format("{} is {}, expected f32", name, ggml_type_name(weight.type)));
  } else if (weight.type != GGML_TYPE_F32 && !ggml_get_type_traits(weight.type)->to_float) {
    wrong_.push_back(fmt::format("{} is {}, expected floats or a quantisation", name, ggml_type_name(weight.type)));
  }
  return weight;
}

void Tensors::report() const {
  std::vector<std::string> unknown;
  for (const auto& [name, weight] : file_.tensors()) {
    if (!used_.contains(name)) unknown.push_back(name);
  }
  std::string text;
  const auto add = [&](const char* what, const std::vector<std::string>& names) {
    if (!names.empty())
      text += fmt::format("{} these tensors are {}: {}", text.empty() ? "" : ";", what, joined(names));
  };
  add("missing", missing_);
  add("wrong", wrong_);
  add("not supported", unknown);
  if (!text.empty()) fail("{}:{}", file_.path(), text);
}

Weight rows_of(const Weight& matrix, int64_t first, int64_t count) {
  if (!matrix) return matrix;
  Weight rows = matrix;
  rows.data = matrix.row(first);
  rows.rows = count;
  return rows;
}

Weight elements_of(const Weight& vector, int64_t first, int64_t count) {
  if (!vector) return vector;
  Weight elements = vector;
  elements.data = vector.data + first * static_cast<int64_t>(sizeof(float));
  elements.cols = count;
  return elements;
}

}  // namespace tidal
