# bash completion of coterie and coterie-runtime: commands and options are read from the program's own
# --help, so that they are always those of the installed version. Else file names are completed.
_coterie() {
  local program=$1 current=$2 words=() word help
  # The commands so far (at most two levels: `coterie trace import`).
  for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    [[ $word =~ ^[a-z]+$ && ${#words[@]} -lt 2 ]] && words+=("$word")
  done
  while ! help=$("$program" "${words[@]}" --help 2>/dev/null); do
    [[ ${#words[@]} -eq 0 ]] && return
    unset "words[-1]"
  done
  if [[ $current == -* ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$(grep -oE -- '--[a-z][a-z-]*' <<<"$help" | sort -u)" -- "$current")
    return
  fi
  local commands
  commands=$(sed -n '/^Subcommands:/,/^$/s/^  \([a-z][a-z]*\) .*/\1/p' <<<"$help")
  mapfile -t COMPREPLY < <(compgen -W "$commands" -- "$current")
}
complete -o default -F _coterie coterie coterie-runtime
