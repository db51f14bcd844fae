#pragma once
// What is wrong with the structure of a JSON document, for messages.

#include <nlohmann/json.hpp>
#include <string>

namespace coterie {

// Behind "found": "no key "x"", "string in place of number". The library's own sentence in quotes,
// without its name for the fault, where it is of another kind.
std::string json_fault(const nlohmann::json::exception& error);

}  // namespace coterie
