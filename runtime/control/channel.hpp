#pragma once
// Sockets that own their descriptor, and length-framed messages over them. Non-blocking: the I/O
// threads of group.cpp poll.
//
// A frame on the wire: u32 type, u32 zero, u64 length of the body, body; little-endian, as all
// machines of a GPU cluster are.

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/error.hpp"

namespace coterie {

class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() { reset(); }
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, kNone)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    if (this != &other) {
      reset();
      fd_ = std::exchange(other.fd_, kNone);
    }
    return *this;
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  [[nodiscard]] int get() const { return fd_; }
  [[nodiscard]] bool open() const { return fd_ != kNone; }
  void reset() noexcept;
  [[nodiscard]] int release() { return std::exchange(fd_, kNone); }

 private:
  static constexpr int kNone = -1;  // POSIX' own "no descriptor"
  int fd_ = kNone;
};

// A listening TCP socket. Port 0 lets the system choose. Throws DeviceError.
Descriptor listen_on(const std::string& address, std::uint16_t port);
std::uint16_t bound_port(const Descriptor& socket);
// One attempt to connect within `timeout_s`; an empty descriptor where it fails. `reason` says why.
Descriptor try_connect(const std::string& address, std::uint16_t port, double timeout_s,
                       std::string& reason);
void set_non_blocking(int fd);

struct Frame {
  std::uint32_t type = 0;
  std::string body;
};

class Channel {
 public:
  explicit Channel(Descriptor socket) : socket_(std::move(socket)) {}

  [[nodiscard]] int fd() const { return socket_.get(); }
  [[nodiscard]] bool open() const { return socket_.open(); }
  [[nodiscard]] bool wants_to_send() const { return sent_ < out_.size(); }
  void queue(std::uint32_t type, std::string_view body);
  // Both return false once the other side is gone (or speaks another protocol).
  bool send_some();
  bool receive_some();
  std::optional<Frame> next();
  void close() { socket_.reset(); }

 private:
  Descriptor socket_;
  std::string in_, out_;
  std::size_t taken_ = 0, sent_ = 0;  // consumed prefixes of in_ and out_
};

// Plain little-endian packing of message bodies.
class Packer {
 public:
  template <class T>
  Packer& number(T value) {
    static_assert(std::is_arithmetic_v<T>);
    const std::size_t at = bytes_.size();
    bytes_.resize(at + sizeof value);
    std::memcpy(bytes_.data() + at, &value, sizeof value);
    return *this;
  }
  Packer& text(std::string_view value) {
    number<std::uint64_t>(value.size());
    bytes_.append(value);
    return *this;
  }
  template <class T>
  Packer& numbers(const std::vector<T>& values) {
    static_assert(std::is_arithmetic_v<T>);
    return text(
        {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)});  // NOLINT
  }
  [[nodiscard]] std::string take() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

class Unpacker {
 public:
  explicit Unpacker(std::string_view bytes) : bytes_(bytes) {}
  template <class T>
  T number() {
    static_assert(std::is_arithmetic_v<T>);
    T value{};
    const std::string_view piece = take(sizeof value);
    std::memcpy(&value, piece.data(), sizeof value);
    return value;
  }
  std::string text() { return std::string(take(number<std::uint64_t>())); }
  template <class T>
  std::vector<T> numbers() {
    const std::string_view piece = take(number<std::uint64_t>());
    if (piece.size() % sizeof(T) != 0) throw DeviceError("a control message has an odd length");
    std::vector<T> values(piece.size() / sizeof(T));
    if (!values.empty()) std::memcpy(values.data(), piece.data(), piece.size());
    return values;
  }

 private:
  std::string_view take(std::uint64_t size) {
    if (size > bytes_.size()) throw DeviceError("a control message is shorter than it says");
    const std::string_view piece = bytes_.substr(0, size);
    bytes_.remove_prefix(size);
    return piece;
  }
  std::string_view bytes_;
};

}  // namespace coterie
