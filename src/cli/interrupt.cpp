#include "cli/interrupt.h"

#include <array>
#include <csignal>
#include <cstddef>

namespace tidal {
namespace {

constexpr std::array kSignals = {SIGINT, SIGTERM, SIGHUP};

volatile std::sig_atomic_t first_signal = 0;
std::array<struct sigaction, kSignals.size()> previous_actions;

void note_signal(int signal) {
  first_signal = signal;
  for (const int each : kSignals) {
    struct sigaction action {};
    if (sigaction(each, nullptr, &action) == 0 && action.sa_handler == note_signal) {
      action.sa_handler = SIG_DFL;
      sigaction(each, &action, nullptr);
    }
  }
}

}  // namespace

Interrupt::Interrupt() {
  first_signal = 0;
  for (size_t i = 0; i < kSignals.size(); ++i) {
    sigaction(kSignals[i], nullptr, &previous_actions[i]);
    if (kSignals[i] != SIGINT && previous_actions[i].sa_handler == SIG_IGN) continue;
    struct sigaction action {};
    action.sa_handler = note_signal;
    // One at a time: a second one comes when the first has been noted.
    for (const int each : kSignals) sigaddset(&action.sa_mask, each);
    sigaction(kSignals[i], &action, nullptr);
  }
}

Interrupt::~Interrupt() {
  for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &previous_actions[i], nullptr);
}

int Interrupt::signal() const { return first_signal; }

void Interrupt::check() const {
  if (raised()) throw Stopped{signal()};
}

}  // namespace tidal
