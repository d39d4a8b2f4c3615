// The experts of a layer: each row goes through the few that its router chooses.
#pragma once

#include <span>
#include <vector>

#include "backend/cpu/dot_matmul.h"
#include "backend/cpu/gemm.h"
#include "backend/hyperparameters.h"

namespace tidal {

/// Rows of a chunk that chose the same expert share its matrices: up to kShortChunk of them by quantised dots, across
/// chunks, more by bf16 products. So what a row gets depends on its own chunk alone.
class ExpertMlp {
 public:
  ExpertMlp(int threads, Gemm& gemm) : threads_(threads), gemm_(gemm) {}

  /// Makes room, the products' too; nothing where the model has no experts.
  void reserve(const Hyperparameters& hp, int max_rows);
  /// x += the chosen experts of Backend::experts(). routed: [rows, width], what the router reads; normed: likewise,
  /// what the experts read; chunks: the rows of each.
  void add(const Layer& layer, std::span<const int> chunks, Rows routed, Rows normed, Rows x);

 private:
  struct Choice {
    int32_t expert, row, chunk;
    float weight;
  };
  using Run = std::span<const Choice>;

  void route(const Layer& layer, std::span<const int> chunks, Rows normed);
  /// Sorts choices by expert, those of one in the order that they had.
  void sort(std::vector<Choice>& choices);
  /// Calls body(first, run of choices) for each expert that has any.
  template <typename Body>
  static void for_each_expert(const std::vector<Choice>& choices, Body&& body);
  void add_by_dots(const Layer& layer, Rows x);
  void add_by_products(const Layer& layer, Rows normed, Rows x);
  /// The rows of one expert's choices as elements, each chunk's followed by zeros up to a multiple of kRowsStep;
  /// returns how many that are.
  int gather(Run run, Rows normed);
  void add_expert_by_products(const Layer& layer, Run run, Rows normed, Rows x);

  int threads_;
  Gemm& gemm_;
  Experts experts_;
  Activation activation_ = Activation::Silu;
  QuantisedRows inputs_, hidden_rows_;
  Buffer logits_;                      // [rows, experts]
  Buffer hidden_;                      // dots: gate and up, [choices, ffn] each
  Buffer gathered_, hidden_elements_;  // products: [padded rows, width and ffn] in their element type
  Buffer results_;                     // [choices or padded rows, width]
  std::vector<Choice> by_dots_, by_products_, sorted_;
  std::vector<int32_t> order_, counts_;
  std::vector<int32_t> rows_, indices_;  // dots: the row of every choice; 0, 1, ...
  std::vector<int32_t> places_;          // products: where among the gathered rows a choice's is
  std::vector<int> groups_;              // products: gathered rows of each chunk
  std::vector<Weight> weights_;          // matrices and biases of jobs
  std::vector<DotJob> jobs_;
};

}  // namespace tidal
