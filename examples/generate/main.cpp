// Continues a text greedily with tidal attention: generate MODEL.gguf "Some text" 32
#include <core/error.h>
#include <engine/engine.h>
#include <text/tokenizer.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

int main(int argc, char** argv) try {
  if (argc != 4) throw tidal::Error("usage: generate MODEL.gguf TEXT TOKENS");
  const auto backend = tidal::make_cpu_backend(2);
  const tidal::Model model = tidal::load_model(argv[1], *backend);
  const tidal::Tokenizer tokenizer(argv[1]);
  const auto plan = tidal::Plan::tidal(model.hp.layers, tidal::default_reselect(model.hp), tidal::default_policy(256));
  tidal::Engine engine(*backend, model, plan, {.context = 4096});
  tidal::Sequence sequence = engine.create();

  std::span<const float> logits = engine.prefill(sequence, tokenizer.encode(argv[2], true, false));
  for (int i = 0; i < std::atoi(argv[3]); ++i) {
    const auto token = static_cast<tidal::Token>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    if (tokenizer.is_end(token)) break;
    std::fputs(tokenizer.piece(token).c_str(), stdout);
    logits = engine.decode(sequence, token);
  }
  std::puts("");
} catch (const std::exception& error) {
  std::fprintf(stderr, "generate: %s\n", error.what());
  return 1;
}
