#pragma once
// Who am I: the rank of this process, found in the variables that its launcher set.
//
//   launcher                    variables
//   coterie-runtime launch      COTERIE_RANK, COTERIE_NUM_RANKS, COTERIE_LOCAL_RANK, ...
//   torchrun                    RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, _PORT
//   mpirun (Open MPI)           OMPI_COMM_WORLD_RANK, _SIZE, _LOCAL_RANK, _LOCAL_SIZE
//   mpirun (MPICH, Intel, PMI)  PMI_RANK, PMI_SIZE, MPI_LOCALRANKID, MPI_LOCALNRANKS
//   srun                        SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID, ...
//
// The first launcher in this order whose variables are set decides; without any, the process is the
// only rank. MASTER_ADDR and COTERIE_PORT (or MASTER_PORT) say where rank 0 listens; where they are
// missing, the ranks of one machine meet on the loopback interface and those of a Slurm step on its
// first node, at a port derived from the job's identity.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

namespace coterie {

struct RankEnvironment {
  std::string source = "single";  // launch, torchrun, openmpi, pmi, slurm, single
  std::uint32_t rank = 0;
  std::uint32_t num_ranks = 1;
  std::uint32_t local_rank = 0;       // among the ranks of this machine
  std::uint32_t num_local_ranks = 1;  // ranks of this machine
  std::string address = "127.0.0.1";  // where rank 0 listens
  std::uint16_t port = 0;             // 0: no rendezvous needed (a single rank) or `listen_fd`
  std::string job;                    // sent in the handshake, so that two jobs never mix
  std::optional<int> listen_fd;       // rank 0 under `launch`: an inherited, listening socket
};

using GetVariable = std::function<std::optional<std::string>(const std::string& name)>;

// Throws InputError for variables that are incomplete or contradict each other.
RankEnvironment find_ranks(const GetVariable& variable);
RankEnvironment find_ranks();  // from this process's environment

// "gpu[03-05,9],login1" -> "gpu03": the first host of a Slurm node list.
std::string first_slurm_host(const std::string& node_list);

}  // namespace coterie
