// Layers are told apart by ids, whatever lies at the addresses of their weights.
#include <set>

#include "model/model.h"
#include "support/loading.h"
#include "support/small_model.h"

namespace tidal {
namespace {

TEST(LayerIds, AreOfEveryLayerOfEveryModel) {
  const test::TemporaryFolder folder;
  const std::string path = folder.file("model.gguf");
  test::small_model("llama").save(path);
  const auto backend = make_reference_backend();
  std::set<uint64_t> ids;
  size_t layers = 0;
  const auto add = [&](const Model& model) {
    layers += model.layers.size();
    for (const Layer& layer : model.layers) ids.insert(layer.id);
  };
  for (int again = 0; again < 2; ++again) add(load_model(path, *backend));
  add(random_model(test::small_shape(), GGML_TYPE_F32, 1, *backend));
  add(test::random_small_model(test::small_shape(), GGML_TYPE_F32, *backend));
  EXPECT_EQ(ids.size(), layers);
  EXPECT_FALSE(ids.contains(0));
}

}  // namespace
}  // namespace tidal
