#pragma once
// Foreign files written by hand, byte by byte, from the formats' specifications: .npy (NumPy
// format 1.0), zip archives with stored members (APPNOTE 6.3), torch.save pickles (protocol 2).

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "workloads/trace/archive.hpp"

namespace coterie::testing {

template <class T>
std::string raw(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}
template <class T>
std::string raw(T value) {
  return raw(std::vector<T>{value});
}

inline std::string npy(const std::string& descr, const std::string& shape, const std::string& data,
                       const std::string& order = "False") {
  std::string header =
      "{'descr': '" + descr + "', 'fortran_order': " + order + ", 'shape': " + shape + ", }";
  while ((10 + header.size() + 1) % 64 != 0) header += ' ';
  header += '\n';
  return std::string("\x93NUMPY\x01\x00", 8) + raw(static_cast<std::uint16_t>(header.size())) +
         header + data;
}

using Members = std::vector<std::pair<std::string, std::string>>;

inline std::string zip(const Members& members) {
  std::string file;
  std::string directory;
  for (const auto& [name, content] : members) {
    const auto size = static_cast<std::uint32_t>(content.size());
    const std::string common =
        raw(std::uint16_t{20}) + raw(std::uint16_t{0}) + raw(std::uint16_t{0}) +
        raw(std::uint16_t{0}) + raw(std::uint16_t{33}) +
        raw(crc32_of(std::as_bytes(std::span(content)))) + raw(size) + raw(size) +
        raw(static_cast<std::uint16_t>(name.size())) + raw(std::uint16_t{0});
    directory += std::string("PK\x01\x02", 4) + raw(std::uint16_t{20}) + common +
                 raw(std::uint16_t{0}) + raw(std::uint16_t{0}) + raw(std::uint16_t{0}) +
                 raw(std::uint32_t{0}) + raw(static_cast<std::uint32_t>(file.size())) + name;
    file += std::string("PK\x03\x04", 4) + common + name + content;
  }
  const auto count = static_cast<std::uint16_t>(members.size());
  return file + directory + std::string("PK\x05\x06", 4) + raw(std::uint16_t{0}) +
         raw(std::uint16_t{0}) + raw(count) + raw(count) +
         raw(static_cast<std::uint32_t>(directory.size())) +
         raw(static_cast<std::uint32_t>(file.size())) + raw(std::uint16_t{0});
}

// Pickle pieces.
inline std::string p_text(const std::string& text) {
  return "X" + raw(static_cast<std::uint32_t>(text.size())) + text;
}
inline std::string p_int(std::int32_t value) {
  return "J" + raw(value);
}
inline std::string p_ints(const std::vector<std::int32_t>& values) {
  std::string out = "(";
  for (const std::int32_t value : values) out += p_int(value);
  return out + "t";
}
inline std::string p_tensor(const std::string& storage, const std::string& key,
                            std::int32_t num_elements, const std::vector<std::int32_t>& shape,
                            const std::vector<std::int32_t>& strides) {
  return "ctorch._utils\n_rebuild_tensor_v2\n((" + p_text("storage") + "ctorch\n" + storage + "\n" +
         p_text(key) + p_text("cpu") + p_int(num_elements) + "tQ" + p_int(0) + p_ints(shape) +
         p_ints(strides) + "\x89" + "ccollections\nOrderedDict\n)RtR";
}
using Items = std::vector<std::pair<std::string, std::string>>;  // key, pickled value
inline std::string p_dict(const Items& items) {
  std::string out = "}(";
  for (const auto& [key, value] : items) out += p_text(key) + value;
  return out + "u";
}
inline std::string p_list(const std::vector<std::string>& items) {
  std::string out = "](";
  for (const std::string& item : items) out += item;
  return out + "e";
}
inline std::string pickle(const std::string& value) {
  return std::string("\x80\x02", 2) + value + ".";
}
// A torch.save archive; `storages` are members data/0, data/1, ...
inline std::string torch_file(const std::string& value, const std::vector<std::string>& storages) {
  Members members{{"dump/data.pkl", pickle(value)}, {"dump/byteorder", "little"}};
  for (std::size_t i = 0; i < storages.size(); ++i) {
    members.emplace_back("dump/data/" + std::to_string(i), storages[i]);
  }
  return zip(members);
}

}  // namespace coterie::testing
