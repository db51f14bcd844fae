#compdef coterie coterie-runtime
# zsh completion: commands and options are read from the program's own --help, so that they are always
# those of the installed version. Else file names are completed.
_coterie() {
  local program=$words[1] help word
  local -a levels commands options
  for word in ${words[2,CURRENT-1]}; do
    [[ $word == [a-z]## && $#levels -lt 2 ]] && levels+=($word)
  done
  while ! help=$($program $levels --help 2>/dev/null); do
    (( $#levels )) || return 1
    levels=(${levels[1,-2]})
  done
  if [[ $PREFIX == -* ]]; then
    options=(${(fu)"$(grep -oE -- '--[a-z][a-z-]*' <<<$help)"})
    compadd -a options
    return
  fi
  commands=(${(f)"$(sed -n '/^Subcommands:/,/^$/s/^  \([a-z][a-z]*\) .*/\1/p' <<<$help)"})
  (( $#commands )) && compadd -a commands || _files
}
setopt localoptions extendedglob 2>/dev/null
_coterie "$@"
