#include "runtime/control/environment.hpp"

#include <fmt/format.h>

#include <charconv>
#include <cstdlib>

#include "core/error.hpp"
#include "core/hash.hpp"

namespace coterie {
namespace {

class Variables {
 public:
  explicit Variables(const GetVariable& variable) : variable_(variable) {}

  [[nodiscard]] bool has(const std::string& name) const { return text(name).has_value(); }
  [[nodiscard]] std::optional<std::string> text(const std::string& name) const {
    auto value = variable_(name);
    return value && value->empty() ? std::nullopt : value;
  }
  [[nodiscard]] std::optional<std::uint32_t> number(const std::string& name,
                                                    std::uint32_t max) const {
    const auto value = text(name);
    if (!value) return std::nullopt;
    std::uint32_t out = 0;
    const auto [end, error] = std::from_chars(value->data(), value->data() + value->size(), out);
    if (error != std::errc() || end != value->data() + value->size() || out > max) {
      throw InputError(fmt::format("environment variable {}", name), fmt::format("\"{}\"", *value),
                       fmt::format("an integer from 0 to {}", max));
    }
    return out;
  }
  [[nodiscard]] std::uint32_t required(const std::string& name, std::uint32_t max) const {
    const auto value = number(name, max);
    if (!value) throw InputError("environment variable " + name, "nothing", "an integer");
    return *value;
  }

 private:
  const GetVariable& variable_;
};

constexpr std::uint32_t kMaxRanks = 1U << 16U;
constexpr std::uint32_t kMaxPort = 65535;

struct Names {
  const char* source;
  const char* rank;
  const char* num_ranks;
  const char* local_rank;
  const char* num_local_ranks;
};
constexpr Names kLaunchers[] = {
    {"launch", "COTERIE_RANK", "COTERIE_NUM_RANKS", "COTERIE_LOCAL_RANK",
     "COTERIE_NUM_LOCAL_RANKS"},
    {"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"},
    {"openmpi", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
     "OMPI_COMM_WORLD_LOCAL_SIZE"},
    {"pmi", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"},
    // SLURM_STEP_NUM_TASKS is absent in a batch script outside srun, which is one process.
    {"slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ""},
};

// Slurm counts tasks per node as "4(x2),3"; the local rank picks nothing there, so an upper bound
// (the largest entry) is read off.
std::uint32_t slurm_local_ranks(const Variables& variables, std::uint32_t num_ranks) {
  const auto text = variables.text("SLURM_STEP_TASKS_PER_NODE");
  if (!text) return num_ranks;
  std::uint32_t largest = 1;
  std::size_t pos = 0;
  while (pos < text->size()) {
    std::uint32_t count = 0;
    std::from_chars(text->data() + pos, text->data() + text->size(), count);
    largest = std::max(largest, count);
    const std::size_t comma = text->find(',', pos);
    if (comma == std::string::npos) break;
    pos = comma + 1;
  }
  return std::min(largest, num_ranks);
}

std::string job_identity(const Variables& variables) {
  for (const char* name : {"COTERIE_JOB", "TORCHELASTIC_RUN_ID", "PMIX_NAMESPACE",
                           "OMPI_MCA_ess_base_jobid", "OMPI_MCA_orte_ess_jobid", "PMI_JOBID"}) {
    if (auto value = variables.text(name)) return *value;
  }
  if (auto job = variables.text("SLURM_JOB_ID")) {
    return *job + "." + variables.text("SLURM_STEP_ID").value_or("0");
  }
  return "job";
}

}  // namespace

std::string first_slurm_host(const std::string& node_list) {
  const std::size_t end = node_list.find_first_of(",[");
  if (end == std::string::npos || node_list[end] == ',') return node_list.substr(0, end);
  const std::size_t number_end = node_list.find_first_of(",-]", end + 1);
  if (number_end == std::string::npos) {
    throw InputError("Slurm node list", "\"" + node_list + "\"", "a closed bracket");
  }
  return node_list.substr(0, end) + node_list.substr(end + 1, number_end - end - 1);
}

RankEnvironment find_ranks(const GetVariable& variable) {
  const Variables variables(variable);
  RankEnvironment out;
  const Names* names = nullptr;
  for (const Names& candidate : kLaunchers) {
    if (variables.has(candidate.rank) && variables.has(candidate.num_ranks)) {
      names = &candidate;
      break;
    }
  }
  out.job = job_identity(variables);
  if (names == nullptr) return out;

  out.source = names->source;
  out.num_ranks = variables.required(names->num_ranks, kMaxRanks);
  out.rank = variables.required(names->rank, kMaxRanks);
  if (out.num_ranks == 0 || out.rank >= out.num_ranks) {
    throw InputError(fmt::format("environment variable {}", names->rank),
                     fmt::format("rank {} of {}", out.rank, out.num_ranks),
                     fmt::format("a rank below {}", names->num_ranks));
  }
  // Launchers that do not say where a rank stands on its machine are taken to use one machine.
  out.local_rank = variables.number(names->local_rank, kMaxRanks).value_or(out.rank);
  if (out.source == "slurm") {
    out.num_local_ranks = slurm_local_ranks(variables, out.num_ranks);
  } else {
    out.num_local_ranks =
        variables.number(names->num_local_ranks, kMaxRanks).value_or(out.num_ranks);
  }
  const bool one_machine = out.num_local_ranks == out.num_ranks;

  if (const auto fd = variables.number("COTERIE_LISTEN_FD", 1U << 20U); fd && out.rank == 0) {
    out.listen_fd = static_cast<int>(*fd);
  }
  if (const auto address = variables.text("MASTER_ADDR"); address && out.source != "launch") {
    out.address = *address;
  } else if (!one_machine) {
    const auto nodes = variables.text("SLURM_STEP_NODELIST");
    if (out.source != "slurm" || !nodes) {
      throw InputError("environment variable MASTER_ADDR", "nothing",
                       "the address of rank 0's machine, because the ranks use several machines");
    }
    out.address = first_slurm_host(*nodes);
  }
  if (const auto port = variables.number("COTERIE_PORT", kMaxPort)) {
    out.port = static_cast<std::uint16_t>(*port);
  } else if (const auto master = variables.number("MASTER_PORT", kMaxPort - 1)) {
    // torchrun's own store listens at MASTER_PORT itself.
    out.port = static_cast<std::uint16_t>(out.source == "torchrun" ? *master + 1 : *master);
  } else {
    // Above the registered ports, below Linux' ephemeral ones.
    out.port = static_cast<std::uint16_t>(20000 + content_hash(out.job) % 12000);
  }
  return out;
}

RankEnvironment find_ranks() {
  return find_ranks([](const std::string& name) -> std::optional<std::string> {
    const char* value = std::getenv(name.c_str());
    if (value == nullptr) return std::nullopt;
    return std::string(value);
  });
}

}  // namespace coterie
