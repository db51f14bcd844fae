// Which launcher's variables are believed. The names are those that torchrun, Open MPI, hydra and
// Slurm document for the processes they start.

#include "runtime/control/environment.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "core/error.hpp"
#include "runtime/control/machine.hpp"
#include "runtime/control/mps.hpp"

namespace coterie {
namespace {

using Environment = std::map<std::string, std::string>;

RankEnvironment find(const Environment& variables) {
  return find_ranks([&](const std::string& name) -> std::optional<std::string> {
    const auto entry = variables.find(name);
    if (entry == variables.end()) return std::nullopt;
    return entry->second;
  });
}

TEST(Environment, WithoutALauncherThereIsOneRank) {
  const RankEnvironment ranks = find({});
  EXPECT_EQ(ranks.source, "single");
  EXPECT_EQ(ranks.num_ranks, 1U);
}

TEST(Environment, TorchrunListensNextToTorchsOwnStore) {
  const RankEnvironment ranks = find({{"RANK", "9"},
                                      {"WORLD_SIZE", "16"},
                                      {"LOCAL_RANK", "1"},
                                      {"LOCAL_WORLD_SIZE", "8"},
                                      {"MASTER_ADDR", "node0"},
                                      {"MASTER_PORT", "29500"}});
  EXPECT_EQ(ranks.source, "torchrun");
  EXPECT_EQ(ranks.rank, 9U);
  EXPECT_EQ(ranks.local_rank, 1U);
  EXPECT_EQ(ranks.num_local_ranks, 8U);
  EXPECT_EQ(ranks.address, "node0");
  EXPECT_EQ(ranks.port, 29501);
}

TEST(Environment, OpenMpiOnOneMachineNeedsNoAddress) {
  const RankEnvironment ranks = find({{"OMPI_COMM_WORLD_RANK", "3"},
                                      {"OMPI_COMM_WORLD_SIZE", "4"},
                                      {"OMPI_COMM_WORLD_LOCAL_RANK", "3"},
                                      {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"},
                                      {"PMIX_NAMESPACE", "job-17"}});
  EXPECT_EQ(ranks.source, "openmpi");
  EXPECT_EQ(ranks.address, "127.0.0.1");
  EXPECT_EQ(ranks.job, "job-17");
  EXPECT_GE(ranks.port, 20000);
  EXPECT_LT(ranks.port, 32000);
}

TEST(Environment, OpenMpiOnSeveralMachinesNeedsOne) {
  EXPECT_THROW((void)find({{"OMPI_COMM_WORLD_RANK", "3"},
                           {"OMPI_COMM_WORLD_SIZE", "4"},
                           {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                           {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}}),
               InputError);
}

TEST(Environment, SlurmMeetsOnTheStepsFirstNode) {
  const RankEnvironment ranks = find({{"SLURM_PROCID", "5"},
                                      {"SLURM_STEP_NUM_TASKS", "16"},
                                      {"SLURM_LOCALID", "5"},
                                      {"SLURM_STEP_TASKS_PER_NODE", "8(x2)"},
                                      {"SLURM_STEP_NODELIST", "gpu[07-08]"},
                                      {"SLURM_JOB_ID", "1234"},
                                      {"SLURM_STEP_ID", "2"}});
  EXPECT_EQ(ranks.source, "slurm");
  EXPECT_EQ(ranks.num_local_ranks, 8U);
  EXPECT_EQ(ranks.address, "gpu07");
  EXPECT_EQ(ranks.job, "1234.2");
}

TEST(Environment, ABatchScriptOutsideSrunIsOneRank) {
  EXPECT_EQ(find({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "16"}}).num_ranks, 1U);
}

TEST(Environment, LaunchGoesBeforeTheJobItRunsIn) {
  const RankEnvironment ranks = find({{"SLURM_PROCID", "0"},
                                      {"SLURM_STEP_NUM_TASKS", "1"},
                                      {"COTERIE_RANK", "2"},
                                      {"COTERIE_NUM_RANKS", "4"},
                                      {"COTERIE_LOCAL_RANK", "2"},
                                      {"COTERIE_NUM_LOCAL_RANKS", "4"},
                                      {"COTERIE_PORT", "4321"},
                                      {"MASTER_ADDR", "elsewhere"}});
  EXPECT_EQ(ranks.source, "launch");
  EXPECT_EQ(ranks.rank, 2U);
  EXPECT_EQ(ranks.port, 4321);
  EXPECT_EQ(ranks.address, "127.0.0.1");
}

TEST(Environment, NonsenseIsNamed) {
  try {
    (void)find({{"RANK", "four"}, {"WORLD_SIZE", "8"}});
    FAIL() << "no error";
  } catch (const InputError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("RANK"));
  }
  EXPECT_THROW((void)find({{"RANK", "8"}, {"WORLD_SIZE", "8"}}), InputError);
}

TEST(Environment, FirstSlurmHost) {
  EXPECT_EQ(first_slurm_host("gpu[03-05,9],login1"), "gpu03");
  EXPECT_EQ(first_slurm_host("gpu[9,11]"), "gpu9");
  EXPECT_EQ(first_slurm_host("alpha,beta"), "alpha");
  EXPECT_EQ(first_slurm_host("alpha"), "alpha");
}

// Ranks of one machine tell the same, whatever they are; only where a test asks for it do neighbours part,
// here after every third.
TEST(Machine, IsOneUnlessATestAsksForMore) {
  const auto identity = [](std::uint32_t local_rank, const std::string& ranks_per_machine) {
    RankEnvironment environment;
    environment.local_rank = local_rank;
    return machine_identity(environment,
                            [&](const std::string& name) -> std::optional<std::string> {
                              if (name != "COTERIE_RANKS_PER_MACHINE") return std::nullopt;
                              return ranks_per_machine;
                            });
  };
  EXPECT_FALSE(identity(0, "").empty());
  EXPECT_EQ(identity(0, ""), identity(7, ""));
  EXPECT_EQ(identity(3, "3"), identity(5, "3"));
  EXPECT_NE(identity(2, "3"), identity(3, "3"));
  EXPECT_NE(identity(5, "3"), identity(6, "3"));
  for (const char* nonsense : {"0", "-1", "two", "2x"}) {
    EXPECT_THROW((void)identity(0, nonsense), InputError) << nonsense;
  }
}

// NVIDIA's description of MPS: with "0,2" for the daemon a client sees a device 0 and a device 1, and
// UUIDs name the same device for both.
TEST(Environment, DevicesOfAnMpsServerCountFromZero) {
  EXPECT_EQ(devices_of_clients("0,2"), "0,1");
  EXPECT_EQ(devices_of_clients("1"), "0");
  EXPECT_EQ(devices_of_clients("3,2,1,0"), "0,1,2,3");
  EXPECT_EQ(devices_of_clients(""), std::nullopt);
  EXPECT_EQ(devices_of_clients("GPU-8aa8864d"), std::nullopt);
  EXPECT_EQ(devices_of_clients("0,GPU-8aa8864d"), std::nullopt);
  EXPECT_EQ(devices_of_clients("-1"), std::nullopt);
}

}  // namespace
}  // namespace coterie
