#include "cli/console/interrupt.h"

#include <array>
#include <atomic>
#include <csignal>
#include <system_error>
#include <thread>

namespace tidal {
namespace {

constexpr std::array kSignals = {SIGINT, SIGTERM, SIGHUP};

constexpr int kNobody = -1;  // no Interrupt lives
std::atomic<int> first_signal = kNobody;

sigset_t set_of(int signal) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, signal);
  return set;
}

/// As if nobody had ever listened.
void end_by(int signal) {
  std::signal(signal, SIG_DFL);
  const sigset_t set = set_of(signal);
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
  std::raise(signal);
}

void receive(sigset_t signals, bool ignores_interrupt) {
  for (;;) {
    int signal = 0;
    if (sigwait(&signals, &signal) != 0) continue;
    int none = 0;
    if (first_signal.compare_exchange_strong(none, signal)) continue;
    if (none == kNobody && signal == SIGINT && ignores_interrupt) continue;
    end_by(signal);
  }
}

}  // namespace

void receive_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  bool ignores_interrupt = false;
  for (const int signal : kSignals) {
    struct sigaction action {};
    sigaction(signal, nullptr, &action);
    const bool ignored = action.sa_handler == SIG_IGN;
    if (signal == SIGINT) ignores_interrupt = ignored;
    if (signal == SIGINT || !ignored) sigaddset(&signals, signal);
  }
  sigset_t before;
  pthread_sigmask(SIG_BLOCK, &signals, &before);
  try {
    std::thread(receive, signals, ignores_interrupt).detach();
  } catch (const std::system_error&) {
    pthread_sigmask(SIG_SETMASK, &before, nullptr);  // they end the program then, whatever it does
  }
}

Interrupt::Interrupt() { first_signal = 0; }

Interrupt::~Interrupt() { first_signal = kNobody; }

int Interrupt::signal() const { return first_signal; }

void Interrupt::check() const {
  if (raised()) throw Stopped{signal()};
}

}  // namespace tidal
