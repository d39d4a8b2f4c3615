#include "server/http/http_server.h"

#include <algorithm>
#include <boost/asio/error.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/system/error_code.hpp>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "core/error.h"
#include "server/http/connection.h"
#include "server/http/loop.h"

namespace tidal::http {
namespace {

using boost::asio::ip::tcp;
using boost::system::error_code;
using std::chrono::milliseconds;

/// How many connections beyond the limit are told so at a time; the others are closed without a word.
constexpr size_t kMostRefused = 128;
/// Until the next attempt where there are no file descriptors left.
constexpr milliseconds kAcceptPause{100};

std::string without_brackets(const std::string& host) {
  const bool literal = host.size() > 2 && host.front() == '[' && host.back() == ']';
  return literal ? host.substr(1, host.size() - 2) : host;
}

std::string sentence(const error_code& error) {
  std::string out = error.message();
  if (out.size() > 1 && out[0] >= 'A' && out[0] <= 'Z' && out[1] >= 'a') out[0] = static_cast<char>(out[0] - 'A' + 'a');
  return out;
}

void listen(tcp::acceptor& acceptor, boost::asio::io_context& io, const Options& options) {
  const std::string host = without_brackets(options.host);
  const std::string name =
      fmt::format("{}:{}", host.find(':') == std::string::npos ? host : "[" + host + "]", options.port);
  if (options.port < 0 || options.port > 65535) fail("{}: expected a port from 0 to 65535", name);
  error_code error;
  const auto found = tcp::resolver(io).resolve(host, std::to_string(options.port), tcp::resolver::passive, error);
  std::vector<tcp::endpoint> endpoints;
  for (const auto& entry : found) endpoints.push_back(entry.endpoint());
  if (error || endpoints.empty())
    fail("{}: cannot find this host, expected an address or a name of this machine", name);
  // Of a name with addresses of both kinds (localhost), what most clients try.
  std::stable_partition(endpoints.begin(), endpoints.end(),
                        [](const tcp::endpoint& endpoint) { return endpoint.address().is_v4(); });
  error_code first;
  for (const tcp::endpoint& endpoint : endpoints) {
    error = {};
    if (acceptor.is_open()) acceptor.close(error);
    if (!acceptor.open(endpoint.protocol(), error) && !acceptor.set_option(tcp::acceptor::reuse_address(true), error) &&
        !acceptor.bind(endpoint, error) && !acceptor.listen(tcp::acceptor::max_listen_connections, error)) {
      return;
    }
    if (!first) first = error;
  }
  fail("{}: cannot listen there, {}", name, sentence(first));
}

}  // namespace

struct Server::State {
  explicit State(const Options& options, Handler handler, ErrorBody error_body);
  ~State() { stop(milliseconds(0)); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  void stop(milliseconds drain);

  // Of the server's thread.
  void accept();
  void accepted(const error_code& error, tcp::socket socket);
  void begin_stop(std::chrono::steady_clock::time_point until);
  void finish_stop();

  const std::shared_ptr<Loop> loop = std::make_shared<Loop>();
  tcp::acceptor acceptor{loop->io};
  boost::asio::steady_timer pause{loop->io};
  boost::asio::steady_timer drained{loop->io};
  bool finished = false;
  int port = 0;
  std::mutex joining;
  std::thread thread;
};

Server::State::State(const Options& options, Handler handler, ErrorBody error_body) {
  loop->options = options;
  loop->handler = std::move(handler);
  loop->error_body = std::move(error_body);
  listen(acceptor, loop->io, options);
  port = acceptor.local_endpoint().port();
  accept();
  thread = std::thread([this] {
    for (;;) {
      try {
        loop->io.run();
        return;
      } catch (...) {  // NOLINT(bugprone-empty-catch): for want of memory; what threw is lost, and nothing else
      }
    }
  });
}

void Server::State::accept() {
  if (loop->draining || finished) return;
  acceptor.async_accept([this](error_code error, tcp::socket socket) { accepted(error, std::move(socket)); });
}

void Server::State::accepted(const error_code& error, tcp::socket socket) {
  if (loop->draining) return;
  if (error == boost::asio::error::no_descriptors || error == boost::system::errc::too_many_files_open_in_system ||
      error == boost::asio::error::no_memory || error == boost::asio::error::no_buffer_space) {
    pause.expires_after(kAcceptPause);
    pause.async_wait([this](error_code) { accept(); });
    return;
  }
  if (!error && loop->connections.size() < loop->options.most_connections + kMostRefused) {
    try {
      const auto connection = std::make_shared<Connection>(*loop, std::move(socket));
      loop->connections.insert(connection);
      connection->start(loop->admitted < loop->options.most_connections);
    } catch (const std::bad_alloc&) {  // NOLINT(bugprone-empty-catch): the client finds it closed
    }
  }
  accept();
}

void Server::State::begin_stop(std::chrono::steady_clock::time_point until) {
  if (finished) return;
  if (!loop->draining) {
    loop->draining = true;
    error_code ignored;
    acceptor.close(ignored);
    pause.cancel();
    const std::vector<std::shared_ptr<Connection>> all(loop->connections.begin(), loop->connections.end());
    // All of them before the first client can see that the server stops.
    for (const auto& connection : all) connection->say_close();
    for (const auto& connection : all) connection->drain();
    // Not at once: the connection that calls is in the middle of something.
    loop->less_to_do = [this] {
      boost::asio::post(loop->io, [this] {
        const auto busy = [](const auto& connection) { return connection->busy(); };
        if (std::none_of(loop->connections.begin(), loop->connections.end(), busy)) finish_stop();
      });
    };
    loop->less_to_do();
  } else if (until >= drained.expiry()) {
    return;
  }
  drained.expires_at(until);
  drained.async_wait([this](error_code error) {
    if (!error) finish_stop();
  });
}

/// With no connection left the thread has nothing to wait for, and ends.
void Server::State::finish_stop() {
  if (finished) return;
  finished = true;
  drained.cancel();
  loop->less_to_do = nullptr;
  const std::vector<std::shared_ptr<Connection>> all(loop->connections.begin(), loop->connections.end());
  for (const auto& connection : all) connection->close();
}

void Server::State::stop(milliseconds drain) {
  const auto until = std::chrono::steady_clock::now() + std::min<milliseconds>(drain, std::chrono::hours(24 * 365));
  boost::asio::post(loop->io, [this, until] { begin_stop(until); });
  const std::lock_guard lock(joining);
  if (!thread.joinable()) return;
  thread.join();
  // Exchanges may keep the loop for long, and should not keep what these hold.
  loop->handler = nullptr;
  loop->error_body = nullptr;
}

Server::Server(const Options& options, Handler handler, ErrorBody error_body)
    : state_(std::make_unique<State>(options, std::move(handler), std::move(error_body))) {}
Server::~Server() = default;

int Server::port() const { return state_->port; }
void Server::stop(milliseconds drain) { state_->stop(drain); }
size_t Server::connections() const { return state_->loop->admitted; }

}  // namespace tidal::http
