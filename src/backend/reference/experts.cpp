#include "backend/reference/experts.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace tidal::reference {

std::vector<ChosenExpert> choose_experts(const float* logits, const Experts& experts) {
  const auto rank = [&](int expert) {
    return std::isnan(logits[expert]) ? -std::numeric_limits<float>::infinity() : logits[expert];
  };
  std::vector<int> order(experts.count);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return rank(a) > rank(b); });
  const double top = rank(order.front());
  double all = 0, chosen = 0;
  for (int i = 0; i < experts.count; ++i) {
    const double term = std::exp(logits[order[i]] - top);
    all += term;
    if (i < experts.used) chosen += term;
  }
  std::vector<ChosenExpert> result;
  for (int i = 0; i < experts.used; ++i) {
    const double sum = experts.weights_sum_to_one ? chosen : all;
    result.push_back({order[i], static_cast<float>(std::exp(logits[order[i]] - top) / sum)});
  }
  return result;
}

void add_shared_expert(const Hyperparameters& hp, const Layer& layer, Rows normed, Rows to) {
  const Matrix hidden = hidden_layer(hp.activation, layer.shared_gate, {}, layer.shared_up, {}, normed);
  const Matrix shared(to.rows, to.width), logits(to.rows, 1);
  multiply(layer.shared_down, {}, hidden, shared);
  if (layer.shared_switch) multiply(layer.shared_switch, {}, normed, logits);
  for (int r = 0; r < to.rows; ++r) {
    const float share = layer.shared_switch ? 1.0f / (1.0f + std::exp(-logits->row(r)[0])) : 1.0f;
    for (int i = 0; i < to.width; ++i) to.row(r)[i] += share * shared->row(r)[i];
  }
}

void add_chosen_experts(const Hyperparameters& hp, const Layer& layer, Rows logits, Rows normed, Rows to) {
  const int ffn = hp.experts.ffn;
  const Matrix output(1, to.width);
  for (int r = 0; r < to.rows; ++r) {
    const Rows own{normed.row(r), 1, to.width};
    for (const auto& [expert, weight] : choose_experts(logits.row(r), hp.experts)) {
      const Weight down = expert_matrix(layer.expert_down, layer.down_scales, expert, to.width);
      const Matrix hidden =
          hidden_layer(hp.activation, expert_gate_matrix(layer, expert, ffn), expert_bias(layer.gate_biases, expert),
                       expert_up_matrix(layer, expert, ffn), expert_bias(layer.up_biases, expert), own);
      multiply(down, expert_bias(layer.down_biases, expert), hidden, output);
      for (int i = 0; i < to.width; ++i) to.row(r)[i] += weight * output->row(0)[i];
    }
  }
}

}  // namespace tidal::reference
